"""One worker: searches in a process of its own, and tells its parent only how that ended and what it warned of."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from llmsearch_optuna.errors import LlmsearchError, describe_error
from llmsearch_optuna.progress import Quiet

RELAYED = ("llmsearch_optuna", "py.warnings")
"""Loggers whose records the parent shows."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What a worker's library logged."""

    logger: str
    level: int
    text: str


class Line(Protocol):
    """A way to the parent."""

    def send(self, obj: Any, /) -> None:
        """Send a message."""


def work(arguments: Mapping[str, Any], line: Connection) -> None:
    """Search, in a process that ends with it; what went wrong goes to the parent as a text.

    Args:
        arguments: Of `search`.
        line: To the parent; takes what is `Logged`, and one text when the search cannot go on.
    """
    _leave_interrupts_to_parent()
    _end_with_parent()
    relay_logs(line)
    from llmsearch_optuna.api import search
    from llmsearch_optuna.optimize.signals import StudyInterrupted

    try:
        search(**arguments, observer=Quiet())
    except (StudyInterrupted, KeyboardInterrupt):
        _end_at_once(130)
    except BaseException as problem:  # SystemExit too: code of models and metrics may call exit()
        line.send(say(problem))
        sys.exit(1)


def say(problem: BaseException) -> str:
    """What a user is told about an error."""
    return str(problem) if isinstance(problem, LlmsearchError) else describe_error(problem)


def _end_at_once(code: int) -> NoReturn:
    """End without taking the interpreter apart: on a busy machine torch needs longer for it than the parent waits.

    The study is closed by now, so nothing is left to be saved.
    """
    for child in multiprocessing.active_children():  # those of a metric, say; nobody would end them
        child.terminate()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
    os._exit(code)


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the parent ends its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the mask that it was started with


def _end_with_parent() -> None:
    """A worker that nobody watches any more would hold a GPU for nothing; SIGTERM ends it with its rows saved."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="llmsearch-parent", daemon=True).start()


def relay_logs(line: Line) -> None:
    """Send what the library logs to the parent, and nowhere else."""
    logging.captureWarnings(capture=True)
    relay = _Relay(line)
    for name in RELAYED:
        logger = logging.getLogger(name)
        logger.handlers = [relay]
        logger.propagate = False


class _Relay(logging.Handler):
    """Sends log records to the parent; a handler's lock keeps the threads of the worker apart."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        with contextlib.suppress(OSError):  # the parent is gone
            self._line.send(Logged(record.name, record.levelno, record.getMessage()))
