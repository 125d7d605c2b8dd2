"""Ctrl-C and SIGTERM: the study stops, nothing that was decoded is lost, and one line says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.storage import OpenedStudy


class StudyInterrupted(LlmsearchError):  # noqa: N818
    """The user ended the study before its time; the message says how to go on."""


@contextlib.contextmanager
def interruptible(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into StudyInterrupted.

    Args:
        how_to_go_on: Asked for the message when it happens.

    Raises:
        StudyInterrupted: When one of them came.
    """
    with _terminate_like_interrupt():
        try:
            yield
        except KeyboardInterrupt:
            raise StudyInterrupted(how_to_go_on()) from None


def how_to_go_on(opened: OpenedStudy, n_trials: int) -> str:
    """How far the study is, and that the same command goes on."""
    ended = sum(t.state.is_finished() for t in opened.study.get_trials(deepcopy=False))
    return (
        f"interrupted after {ended} of {n_trials} trials; all finished rows are safe in {opened.url}. "
        "Run the same command again to go on."
    )


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    # Handlers belong to the main thread; elsewhere the program's owner decides what SIGTERM does.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
