"""Ctrl-C and SIGTERM: the study stops, nothing that was decoded is lost, and one line says how to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.interrupts import held_back, stop_if_asked
from llmsearch_optuna.storage import OpenedStudy


class StudyInterrupted(LlmsearchError):  # noqa: N818
    """The user ended the study before its time; the message says how to go on."""


@contextlib.contextmanager
def interruptible(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into StudyInterrupted, raised where nothing is half done.

    Args:
        how_to_go_on: Asked for the message when it happens.

    Raises:
        StudyInterrupted: When one of them came.
    """
    with held_back():
        try:
            yield
            stop_if_asked()
        except KeyboardInterrupt:
            raise StudyInterrupted(how_to_go_on()) from None


def how_to_go_on(opened: OpenedStudy, n_trials: int) -> str:
    """How far the study is, and that the same command goes on."""
    ended = sum(t.state.is_finished() for t in opened.study.get_trials(deepcopy=False))
    return (
        f"interrupted after {ended} of {n_trials} trials; all finished rows are safe in {opened.url}. "
        "Run the same command again to go on."
    )
