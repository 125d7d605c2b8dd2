from __future__ import annotations

import contextlib
import errno
import urllib.error
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.backends.answers import checked_completion, unavailable
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError


class APIConnectionError(Exception):
    """As in openai's package."""


class StatusError(Exception):
    def __init__(self, code: int, *, on_response: bool = False) -> None:
        super().__init__(f"HTTP {code}")
        if on_response:
            self.response = SimpleNamespace(status_code=code)
        else:
            self.status_code = code


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
        FileNotFoundError(errno.ENOENT, "no such file"),
        SystemExit(3),
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


@pytest.mark.parametrize(
    "given",
    [
        None,
        7,
        {"text": "a"},
        b"bytes",
        ["a"],
        Completion(None),  # type: ignore[arg-type]
        Completion("a", (1.5,)),  # type: ignore[arg-type]
        Completion("a", (-1,)),
        Completion("a", (1 << 40,)),
        Completion("a", 5),  # type: ignore[arg-type]
        Completion("a", (), "done"),  # type: ignore[arg-type]
        Completion("a", prompt_tokens="x"),  # type: ignore[arg-type]
        SimpleNamespace(text=3),
    ],
)
def test_what_is_no_completion_is_refused(given: Any) -> None:
    with pytest.raises(DecodingError, match="the engine returned"):
        checked_completion(given)


def test_objects_with_a_text_are_completions() -> None:
    assert checked_completion("a") == Completion("a")
    assert checked_completion(SimpleNamespace(text="a", token_ids=[1, 2])) == Completion("a", (1, 2))
    assert checked_completion(SimpleNamespace(text="a", token_ids=None, finish_reason=None)) == Completion("a")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_is_a_completion_or_a_decoding_error(value: Any) -> None:
    for given_value in (value, SimpleNamespace(text=value), SimpleNamespace(text="a", token_ids=value)):
        with contextlib.suppress(DecodingError):
            assert isinstance(checked_completion(given_value), Completion)
