"""Functions are recognised in another process by what they do, and never by where they stand."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable


def plain(row: dict[str, Any]) -> str:
    return str(row["text"])


def made_with(word: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: word + str(row["text"])


class Prompter:
    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, row: dict[str, Any]) -> str:
        return self.word


def test_a_function_counts_by_its_source() -> None:
    description = describe_callable(plain)
    assert description == {"source": 'def plain(row: dict[str, Any]) -> str:\n    return str(row["text"])'}


def test_a_name_stands_for_everything() -> None:
    def prompt(row: dict[str, Any]) -> str:
        return ""

    prompt.name = "summary prompt 2"  # type: ignore[attr-defined]
    assert describe_callable(prompt) == {"name": "summary prompt 2"}
    assert callable_name(prompt, "prompt") == "summary prompt 2"


def test_what_a_function_closes_over_counts() -> None:
    assert describe_callable(made_with("a")) == describe_callable(made_with("a"))
    assert describe_callable(made_with("a")) != describe_callable(made_with("b"))


def test_defaults_count() -> None:
    first: list[Any] = [lambda row, k=k: k for k in (1, 2)]
    assert describe_callable(first[0]) != describe_callable(first[1])


def test_partials_and_instances_count_by_their_values() -> None:
    assert describe_callable(functools.partial(max, 3)) != describe_callable(functools.partial(max, 4))
    assert describe_callable(Prompter("a")) != describe_callable(Prompter("b"))
    assert describe_callable(Prompter("a")) == describe_callable(Prompter("a"))


def test_code_without_source_counts_by_its_code() -> None:
    spaces: list[dict[str, Any]] = [{}, {}, {}]
    for space, text in zip(spaces, ("f = lambda r: 1", "f = lambda r: 2", "f = lambda r: 1"), strict=True):
        exec(text, space)
    one, two, again = (describe_callable(space["f"]) for space in spaces)
    assert one == again
    assert one != two


def test_the_code_around_a_lambda_does_not_count() -> None:
    here = describe_callable(lambda row: row["text"])
    there = [1, describe_callable(lambda row: row["text"])][1]
    assert here == there == {"source": "lambda row: row['text']"}


def test_descriptions_are_json_without_addresses() -> None:
    for function in (
        plain,
        made_with("a"),
        Prompter("a"),
        Prompter("a").__call__,
        functools.partial(plain, row={}),
        len,
    ):
        assert " at 0x" not in json.dumps(describe_callable(function))


def test_names_for_messages() -> None:
    assert callable_name(plain, "prompt") == "plain"
    assert callable_name(lambda row: "", "prompt") == "prompt"
    assert callable_name(functools.partial(plain), "prompt") == "plain"
    assert callable_name(Prompter("a"), "prompt") == "Prompter"
