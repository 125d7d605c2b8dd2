"""Which errors say *not now*, and how often whoever raises them is asked again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import sqlite3
import urllib.error
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from llmsearch_optuna import transient_errors
from llmsearch_optuna.errors import EngineUnavailableError
from llmsearch_optuna.transient_errors import LONGEST_WAIT, ask_patiently, unavailable


class APIConnectionError(Exception):
    """As in openai's package."""


class ReadTimeoutError(type("TimeoutError", (Exception,), {})):  # type: ignore[misc]
    """As in urllib3's and botocore's packages: none of Python's own."""


class RpcError(Exception):
    """As in grpc's package."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def code(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name, value=(1, "said"))


def of_sqlite(statement: str, *, place: str = ":memory:") -> sqlite3.Error:
    try:
        with contextlib.closing(sqlite3.connect(place)) as database:
            database.executescript(statement)
    except sqlite3.Error as error:
        return error
    raise AssertionError(statement)


class StatusError(Exception):
    def __init__(self, code: int, *, on_response: bool = False) -> None:
        super().__init__(f"HTTP {code}")
        if on_response:
            self.response = SimpleNamespace(status_code=code)
        else:
            self.status_code = code


class Stop(BaseException):
    """As trio's and anyio's Cancelled."""


class RudeError(Exception):
    """Raises whatever is looked at."""

    @property
    def code(self) -> int:
        raise RuntimeError("no")

    status_code = response = errno = reason = retry_after = code

    def __str__(self) -> str:
        raise ValueError("no text either")


def caused_by(cause: BaseException) -> RuntimeError:
    error = RuntimeError("my client gave up")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("nobody listens"),
        TimeoutError(),
        APIConnectionError("Connection error."),
        StatusError(429),
        StatusError(503, on_response=True),
        urllib.error.URLError(ConnectionRefusedError("nobody")),
        urllib.error.HTTPError("http://x", 502, "bad gateway", None, None),  # type: ignore[arg-type]
        BrokenProcessPool("a worker died"),
        OSError(errno.EHOSTUNREACH, "no route to host"),
        caused_by(ConnectionResetError()),
        EngineUnavailableError("said so itself"),
        ReadTimeoutError("read timed out"),
        RpcError("UNAVAILABLE"),
        OSError(errno.ENOSPC, "no space left on device"),
        OSError(errno.EMFILE, "too many open files"),
        of_sqlite("PRAGMA max_page_count = 2; CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x)"),
        of_sqlite("SELECT 1", place="/nowhere/at/all.db"),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        GeneratorExit(),
        Stop("the event loop ends"),
    ],
)
def test_engines_that_are_away_are_known_by_what_they_raise(error: BaseException) -> None:
    assert isinstance(unavailable(error), EngineUnavailableError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("top_p"),
        StatusError(400),
        StatusError(404, on_response=True),
        urllib.error.HTTPError("http://x", 422, "no", None, None),  # type: ignore[arg-type]
        caused_by(KeyError("x")),
        RpcError("INVALID_ARGUMENT"),
        of_sqlite("SELECT * FROM nothing"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        SystemExit(3),
        KeyboardInterrupt(),
        RudeError(),
    ],
)
def test_other_errors_are_about_the_request(error: BaseException) -> None:
    assert unavailable(error) is None


def test_what_the_server_asked_to_wait_is_kept() -> None:
    error = StatusError(429)
    error.retry_after = 7  # type: ignore[attr-defined]
    found = unavailable(error)
    assert found is not None
    assert found.retry_after == 7.0


@pytest.mark.parametrize("asked", [float("nan"), -1, 0, "soon", float("inf"), 10**400])
def test_nobody_waits_for_ever(asked: object) -> None:
    error = StatusError(429)
    error.retry_after = asked  # type: ignore[attr-defined]
    found = unavailable(error)
    assert found is not None
    assert found.retry_after is None or 0 < found.retry_after <= LONGEST_WAIT


def test_who_is_away_is_asked_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0, 0.0))
    asked = []

    def ask() -> str:
        asked.append(None)
        if len(asked) < 3:
            raise asyncio.CancelledError
        return "here"

    assert ask_patiently(ask, unavailable) == "here"
    asked[:] = [None] * -10
    with pytest.raises(EngineUnavailableError, match="asked 3 times"):
        ask_patiently(lambda: exec("raise ConnectionError"), unavailable)
    with pytest.raises(KeyboardInterrupt):
        ask_patiently(lambda: exec("raise KeyboardInterrupt"), unavailable)
