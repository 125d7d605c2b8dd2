"""Ctrl-C and SIGTERM act where nothing is half done: while a model decodes, a metric scores, or a process waits.

A signal's handler runs between any two steps of Python. An exception that it raises may therefore come up in the middle
of a commit; and where Python cleans up (callbacks of weak references, ``__del__``; an object-relational mapper is
full of them) it is printed and dropped, and the program goes on as if nobody had asked it to end. So a signal is
remembered, and acted on at the next place that is marked as `stoppable`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.storage.study import OpenedStudy

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENT_AFTER_SECONDS = 1.0
"""A signal that comes so long after the first one acts wherever it meets the program: somebody is waiting. One that
comes sooner says the same thing once more: a terminal and a parent may both pass Ctrl-C on."""


class _StopRequest:
    """Whether the program was asked to end, and whether it may do so now."""

    def __init__(self) -> None:
        self.came: float | None = None
        self.may_stop = False

    def take(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        impatient = self.came is not None and now - self.came > IMPATIENT_AFTER_SECONDS
        self.came = now if self.came is None else self.came
        if self.may_stop or impatient:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.came is not None:
            raise KeyboardInterrupt


# Signals belong to the process and its main thread, so this does, too; the last one is that of the innermost block.
_requests: list[_StopRequest] = []


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until a place that is `stoppable`, or until the end of the block.

    Signals that are ignored stay so. Handlers belong to the main thread; elsewhere nothing is held back, and the
    program's owner decides what a signal does.

    Raises:
        KeyboardInterrupt: At the end of a block that no place inside has ended.
    """
    if not _in_main_thread():
        yield
        return
    request = _StopRequest()
    held = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, request.take) for number in held}
    _requests.append(request)
    try:
        yield
    finally:
        _requests.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)
    request.check()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let signals act in this block at once, those that were held back before it, too.

    One that Python drops inside is met at the beginning of the next such block.

    Raises:
        KeyboardInterrupt: One has come.
    """
    if not _requests or not _in_main_thread():
        yield
        return
    request = _requests[-1]
    before, request.may_stop = request.may_stop, True
    try:
        request.check()
        yield
    finally:
        request.may_stop = before


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal was held back until now."""
    with stoppable():
        pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class StudyInterrupted(LlmsearchError):  # noqa: N818
    """The user ended the study before its time; the message says how to go on."""


@contextlib.contextmanager
def interruptible(resume_hint: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into StudyInterrupted, raised where nothing is half done.

    Args:
        resume_hint: Asked for the message when it happens.

    Raises:
        StudyInterrupted: When one of them came.
    """
    with held_back():
        try:
            yield
            stop_if_asked()
        except KeyboardInterrupt:
            raise StudyInterrupted(resume_hint()) from None


def resume_hint(opened: OpenedStudy, n_trials: int) -> str:
    """How far the study is, and that the same command goes on."""
    ended = sum(t.state.is_finished() for t in opened.study.get_trials(deepcopy=False))
    return (
        f"interrupted after {ended} of {n_trials} trials; all finished rows are safe in {opened.url}. "
        "Run the same command again to go on."
    )
