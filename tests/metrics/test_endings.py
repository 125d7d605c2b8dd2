"""Metrics of how a text ends; the search for loops agrees with a slow one that looks at every n-gram."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, length_within, no_loop, terminates
from llmsearch_optuna.metrics.endings import loops


def scored(metric: Metric, text: str, reference: Any = None, **how: Any) -> float:
    (score,) = metric.score_rows([text], [reference], [{}], completions=[Completion(text, **how)])
    return score


@pytest.mark.parametrize(("reason", "score"), [("eos", 1.0), ("stop", 1.0), ("length", 0.0)])
def test_a_text_terminates_where_it_was_not_cut(reason: Any, score: float) -> None:
    assert scored(terminates(), "some text", finish_reason=reason) == score


def test_a_metric_that_reads_completions_asks_for_them() -> None:
    with pytest.raises(InputError, match="'terminates' reads how the texts were decoded"):
        terminates().score_rows(["a"], [None], [{}])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The cat sat on the mat.", 1.0),
        ("the cat sat on the cat sat on the cat sat on the cat sat on", 0.0),
        ("the cat sat on the cat sat on the cat sat on the cat sat", 1.0),  # fewer than four times
        ("I am sure. I am sure. I am sure. I am sure. I am su", 0.0),  # cut within a word
        ("no, no, no, no", 1.0),  # too short for a loop
        ("ha " * 30, 0.0),
        ("ha " * 30 + "and then it ended", 1.0),
        ("!" * 40, 0.0),
        ("今天很好。" * 5, 0.0),
        ("今天天气很好，我们去公园。", 1.0),
        ("", 1.0),
    ],
)
def test_loops_are_seen_at_the_end(text: str, score: float) -> None:
    assert scored(no_loop(), text) == score


def test_loops_of_characters_and_of_tokens() -> None:
    assert scored(no_loop(unit="characters"), "x" + "abc" * 6) == 0.0
    assert scored(no_loop(unit="tokens"), "whatever", token_ids=(9, *(1, 2, 3) * 5)) == 0.0
    assert scored(no_loop(unit="tokens"), "ha " * 30, token_ids=tuple(range(30))) == 1.0


def slow_loops(units: list[int], longest: int, times: int, shortest: int) -> bool:
    for size in range(1, longest + 1):
        end = units[-size:]
        for length in range(max((times + 1) * size, shortest), len(units) + 1):
            tail = units[-length:]
            if all(tail[-1 - place] == end[-1 - place % size] for place in range(length)):
                return True
    return False


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 6), st.integers(1, 4), st.integers(1, 8))
def test_the_search_for_loops_agrees_with_a_slow_one(units: list[int], longest: int, times: int, shortest: int) -> None:
    found = loops(units, longest=longest, times=times, shortest=shortest)
    assert found == slow_loops(units, longest, times, shortest)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(4, 8), st.lists(st.integers(10, 99), max_size=9)
)
def test_whatever_is_repeated_often_enough_is_a_loop(part: list[int], often: int, before: list[int]) -> None:
    assert loops([*before, *part * often], longest=8, times=3, shortest=4)
    assert not loops([*before, *part * often, 100], longest=8, times=3, shortest=4)


@pytest.mark.parametrize(
    ("options", "text", "score"),
    [
        ({"low": 2, "high": 3}, "two words", 1.0),
        ({"low": 3}, "two words!", 0.0),
        ({"high": 9, "unit": "characters"}, "two words", 1.0),
        ({"high": 8, "unit": "characters"}, "two words", 0.0),
        ({"low": 4, "high": 4, "unit": "tokens"}, "two words", 1.0),
    ],
)
def test_lengths(options: dict[str, Any], text: str, score: float) -> None:
    assert scored(length_within(**options), text, token_ids=(1, 2, 3, 4)) == score


@pytest.mark.parametrize(("reference", "score"), [([1, 2], 1.0), ((3, 9), 0.0), (2, 1.0), ("1", 0.0)])
def test_the_reference_may_be_the_range(reference: Any, score: float) -> None:
    assert scored(length_within().check([reference], [{}]), "two words", reference) == score


def test_what_is_no_range_or_unit_is_told() -> None:
    with pytest.raises(InputError, match="'length_within' cannot judge row 1: low=None and high='a text' must be two"):
        length_within().check([[1, 2], "a text"], [{}, {}])
    with pytest.raises(InputError, match="the lower one first"):
        length_within(low=5, high=2)
    with pytest.raises(InputError, match="unit='lines' must be one of words, characters, tokens"):
        length_within(high=3, unit="lines")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="times=0 must be a whole number from 1 on"):
        no_loop(times=0)
