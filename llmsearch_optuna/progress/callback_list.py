"""A list of callbacks that takes an event like one, and a guard for callbacks of users."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.progress.events import Callback, Event

logger = logging.getLogger("llmsearch_optuna.progress.callback_list")


class CallbackList:
    """Callbacks that are called in order.

    Args:
        callbacks: Called in this order. The events that they return go to all of them afterwards.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on(self, event: Event) -> None:
        """Call every callback with the event, and then with the events that they returned."""
        waiting: deque[Event] = deque([event])
        while waiting:
            current = waiting.popleft()
            answers = [callback.on(current) for callback in self._callbacks]
            waiting.extend(answer for answer in answers if answer is not None)


class GuardedCallback:
    """A user's callback: its errors are logged, the first one as a warning, and do not end the study.

    KeyboardInterrupt and SystemExit pass: they are how a study is stopped. Of the second a warning tells, since a
    program that ends so says nothing itself.

    Args:
        callback: The user's object.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._has_failed = False

    def on(self, event: Event) -> None:
        """Call the user's callback with the event."""
        try:
            self._callback.on(event)
        except (KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, SystemExit):
                logger.warning("the callback %s ended the program: %s", self._name, describe_error(error))
            raise
        except BaseException as error:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(
                level,
                "the callback %s raised %s on %s; the study goes on, and further errors of it are logged at DEBUG",
                *(self._name, describe_error(error), type(event).__name__),
            )

    @property
    def _name(self) -> str:
        return type(self._callback).__qualname__


def guard(callbacks: Sequence[Any]) -> list[GuardedCallback]:
    """The user's callbacks, each behind a guard.

    Args:
        callbacks: Objects with a method ``on(event)``.

    Raises:
        InputError: This is no sequence, or one of them has no such method.
    """
    if callable(getattr(callbacks, "on", None)) or not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks={short(callbacks)} must be a list of objects with a method on(event)")
    for place, callback in enumerate(callbacks):
        if isinstance(callback, type) or not callable(getattr(callback, "on", None)):
            raise InputError(f"callbacks[{place}]={short(callback)} must be an object with a method on(event)")
    return [GuardedCallback(callback) for callback in callbacks]
