from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.cli.score import _name_and_value
from llmsearch_optuna.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"stop=\n", "\n"),
        (r'stop="\n"', "\n"),
        ("stop=\n", "\n"),
        (r"stop=\t#", "\t#"),
        ("stop=###", "###"),
        ('stop=["a", "\\n"]', ["a", "\n"]),
        ("stop=['a']", ["a"]),
        ("do_sample=True", True),
        ("do_sample=true", True),
        ("top_k=None", None),
        ("top_k=null", None),
        ("temperature=0.7", 0.7),
        ("max_new_tokens=1_000", 1000),
        ('stop=say "no"', 'say "no"'),
        ("stop=a\\", "a\\"),
    ],
)
def test_values_are_read_as_they_are_meant(text: str, value: Any) -> None:
    assert _name_and_value(text) == (text.partition("=")[0], value)


@given(st.text())
def test_any_value_is_read(value: str) -> None:
    try:
        assert _name_and_value(f"stop={value}")[0] == "stop"
    except InputError:
        raise AssertionError(value) from None
