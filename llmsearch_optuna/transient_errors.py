"""Errors that say *not now*: what was called is away or busy, and what was asked of it is not at fault.

Whatever calls a user's engine or metric asks here, so that a failure of a moment is never stored as one of a row.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from llmsearch_optuna.errors import EngineUnavailableError, describe_error

logger = logging.getLogger("llmsearch_optuna.transient_errors")

WAITS_SECONDS = (1.0, 4.0, 15.0)
"""How long to wait before what does not answer is asked again, before the study ends."""

LONGEST_WAIT = 300.0
"""Seconds; whoever asks to be left alone for longer is asked after them, and then the study ends."""

_AWAY_IN_GRPC = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"})
_BUSY_CODES = frozenset({408, 425, 429})
_AWAY = frozenset(
    {
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS),  # of the machine, not of a row
    }
)
_SQLITE_AWAY = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    }
)
# Of httpx, requests, urllib3, aiohttp, botocore, openai, ray and vllm, none of which need be installed.
_AWAY_NAMES = frozenset(
    {
        *("APIConnectionError", "APITimeoutError", "RateLimitError", "InternalServerError", "ServiceUnavailableError"),
        *("TransportError", "Timeout", "HTTPError.Timeout", "NewConnectionError", "MaxRetryError", "ProtocolError"),
        *("ClientConnectionError", "ServerTimeoutError", "RayActorError", "WorkerCrashedError", "EngineDeadError"),
        *("gaierror", "IncompleteRead", "RemoteDisconnected", "CancelledError"),
        *("ConnectionError", "TimeoutError", "EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError"),
    }
)

T = TypeVar("T")


def unavailable(error: BaseException, what: str = "the engine") -> EngineUnavailableError | None:
    """Return what a user is told where an error says that something is away or busy for now; None for all others.

    Connections that fail, timeouts, HTTP 408, 425, 429 and 5xx, disks without room, databases that are locked, and
    processes that have died are of this kind, whichever library raises them, also where they are the cause of what was
    raised. So is what stops whoever was called and is no `Exception` (asyncio's CancelledError, GeneratorExit), but for
    SystemExit, which code of a row raises, and KeyboardInterrupt, which is the user.

    Args:
        error: What was raised.
        what: What does not answer, for the message.
    """
    if isinstance(error, EngineUnavailableError):
        return error
    for cause in _causes(error):
        if _is_away(cause):
            after = _attribute(cause, "retry_after")
            return EngineUnavailableError(
                f"{what} does not answer: {describe_error(error)}",
                retry_after=float(min(after, LONGEST_WAIT)) if isinstance(after, int | float) and after > 0 else None,
            )
    return None


def is_stopped(error: BaseException) -> bool:
    """Whether something that is no `Exception` has stopped what was called; before a study that is a mistake."""
    return any(not isinstance(cause, Exception) for cause in _causes(error))


def ask_patiently(ask: Callable[[], T], away: Callable[[BaseException], EngineUnavailableError | None]) -> T:
    """Return what ``ask`` returns; where it is away or busy, wait and ask again some times.

    Args:
        ask: Asks.
        away: Says whether an error means that; see `unavailable`.

    Raises:
        EngineUnavailableError: It does not answer in the end either. Other errors pass.
    """
    waits = list(WAITS_SECONDS)
    while True:
        try:
            return ask()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found = away(error)
            if found is None:
                raise
            if not waits:
                raise EngineUnavailableError(
                    f"{found} (asked {len(WAITS_SECONDS) + 1} times). Nothing that was decoded is lost: give the same "
                    "command again when it is back"
                ) from error
            wait = max(waits.pop(0), found.retry_after or 0.0)
            logger.warning("%s; asking again in %g s", found, wait)
            time.sleep(wait)


def _is_away(error: BaseException) -> bool:
    if not isinstance(error, Exception):
        return not isinstance(error, SystemExit | KeyboardInterrupt)
    code = _status_code(error)
    if code is not None:
        return code in _BUSY_CODES or code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, str):
        return False
    if isinstance(error, ConnectionError | TimeoutError | BrokenExecutor | EngineUnavailableError):
        return True
    if isinstance(error, sqlite3.Error):
        code = _attribute(error, "sqlite_errorcode")
        return isinstance(code, int) and code & 0xFF in _SQLITE_AWAY
    if callable(code_of := _attribute(error, "code")) and _grpc_code(code_of) in _AWAY_IN_GRPC:
        return True
    number = _attribute(error, "errno")
    return (isinstance(number, int) and number in _AWAY) or any(k.__name__ in _AWAY_NAMES for k in type(error).__mro__)


def _status_code(error: BaseException) -> int | None:
    for holder in (error, _attribute(error, "response")):
        for name in ("status_code", "status", "code"):
            code = _attribute(holder, name)
            if isinstance(code, int) and not isinstance(code, bool) and 100 <= code < 600:
                return code
    return None


def _grpc_code(code: Callable[[], Any]) -> str:
    """The name of what a gRPC call ended with; its errors say it by a method."""
    try:
        return str(getattr(code(), "name", ""))
    except Exception:
        return ""


def _attribute(holder: object, name: str) -> Any:
    """An attribute of a user's object, or None; a property of it may raise anything."""
    try:
        return getattr(holder, name, None)
    except Exception:
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        reason = _attribute(found, "reason")  # urllib's own way of passing an error on
        found = reason if isinstance(reason, BaseException) else found.__cause__
