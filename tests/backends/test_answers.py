from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.backends.answers import checked_completion
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import DecodingError


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
