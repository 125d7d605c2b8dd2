from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.fingerprint.functions import describe_callable
from llmsearch_optuna.metrics.postprocess import POSTPROCESSES, postprocess_of
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.study_file.template import new_study_file
from llmsearch_optuna.task.task import Task


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("strip", "  a \n", "a"),
        ("strip_reasoning", "<think>\n1 + 1\n</think>\n\n2", "2"),
        ("strip_reasoning", "1 + 1\n</think>2", "2"),  # the template wrote the opening tag
        ("strip_reasoning", "<think>1 + 1 …", ""),  # cut by length
        ("strip_reasoning", "1 < 2 > 0", "1 < 2 > 0"),
        ("first_line", "\n\n a \nb", "a"),
        ("first_line", " \n", ""),
        ("last_line", "a\n b\n\n", "b"),
        ("extract_code", "x\n```py\nif a:\n    b\n```\ny\n```\nz\n```", "if a:\n    b"),
        ("extract_code", "````\n```\n````\n", "```"),
        ("extract_code", " no code ", "no code"),
        ("json_only", 'a {b} {"c": {"d": []}} e', '{"c": {"d": []}}'),
        ("json_only", "see: [1, 2]!", "[1, 2]"),
        ("json_only", " none ", "none"),
        ("json_only", "[" * 20_000, "[" * 20_000),
    ],
)
def test_each_does_what_its_name_says(name: str, text: str, expected: str) -> None:
    assert POSTPROCESSES[name](text) == expected


@given(st.text(), st.sampled_from(sorted(POSTPROCESSES)))
def test_any_text_gives_a_text_that_stays_as_it_is(text: str, name: str) -> None:
    once = POSTPROCESSES[name](text)
    assert len(once) <= len(text)
    if name != "extract_code":  # code may hold a fence of its own
        assert POSTPROCESSES[name](once) == once


def test_several_are_applied_in_their_order() -> None:
    function = postprocess_of(["strip_reasoning", "first_line"])
    assert function is not None
    assert function("<think>a</think>\nb\nc") == "b"
    assert describe_callable(function) == {"name": "strip_reasoning+first_line"}
    assert describe_callable(postprocess_of("strip") or str) == {"name": "strip"}


@pytest.mark.parametrize("wrong", ["first_lin", [], ["strip", 3], {"strip": 1}, 3, b"strip"])
def test_what_is_none_is_refused_with_the_names(wrong: Any) -> None:
    with pytest.raises(InputError, match="strip_reasoning, first_line, last_line"):
        Task([{"prompt": "p"}], postprocess=wrong)


def test_a_study_file_names_them() -> None:
    text = new_study_file("x").replace("[data]", '[data]\npostprocess = ["strip_reasoning", "first_line"]', 1)
    task = search_arguments(parse_study_file(text))["dataset"]
    assert task.postprocess == ["strip_reasoning", "first_line"]
    wrong = text.replace('"first_line"]', '"frist_line"]', 1)
    with pytest.raises(InputError, match="did you mean 'first_line'"):
        search_arguments(parse_study_file(wrong))


def test_scores_are_of_what_is_left() -> None:
    rows = [{"prompt": "p", "reference": "7"}, {"prompt": "q", "reference": "8"}]
    metric = Task(rows, metric="exact_match", postprocess="strip_reasoning").prepare().metric
    assert metric.score_rows(["<think>7</think> 7", "<think>8</think> 9"], ["7", "8"], rows) == [1.0, 0.0]
