from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.factories import BUILT_IN
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.references import plain_reference
from llmsearch_optuna.metrics.text_scores import words
from llmsearch_optuna.task.task import Task

SEVERAL = [
    ["a fox", "a dog"],
    ("a fox", "a dog"),
    {"a fox", "a dog"},
    frozenset({"a fox", "a dog"}),
    np.array(["a fox", "a dog"]),
    np.array(["a fox", "a dog"], dtype=object),
    pd.Series(["a fox", "a dog"]),
    pa.array(["a fox", "a dog"]),
    pa.chunked_array([["a fox"], ["a dog"]]),
    pa.array([["a fox", "a dog"]])[0],
    {"a fox": 1, "a dog": 2}.keys(),
    ["a fox", "a dog", None],
    ["a fox", float("nan"), "a dog"],
]


@pytest.mark.parametrize("reference", SEVERAL, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"last_number"}))
def test_several_references_are_several_whatever_holds_them(name: str, reference: Any) -> None:
    metric = BUILT_IN[name]
    for prediction in ("a dog", "None", "nan"):
        expected = metric.score_corpus([prediction], [["a fox", "a dog"]], [{}])
        assert metric.score_corpus([prediction], [reference], [{}]) == expected


def test_numbers_in_arrays_are_numbers() -> None:
    assert BUILT_IN["exact_match"].score_rows(["2"], [np.array([1, 2])], [{}]) == [1.0]
    assert BUILT_IN["exact_match"].score_rows(["2"], [torch.tensor(2)], [{}]) == [1.0]


def test_data_score_the_same_by_path_and_as_a_data_frame(tmp_path: Any) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "answers": [["x", "y"], ["z", None]]})
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    given_as = [frame, tmp_path / "rows.parquet", tmp_path / "rows.jsonl", pd.read_parquet(tmp_path / "rows.parquet")]
    tasks = [Task(data, reference="answers", metric="exact_match", name="d").prepare() for data in given_as]
    assert {task.references for task in map(_hashable, tasks)} == {(("x", "y"), ("z",))}
    assert len({task.description["references"] for task in tasks}) == 1


def _hashable(task: Any) -> Any:
    import dataclasses

    return dataclasses.replace(task, references=tuple(map(tuple, task.references)))


def test_a_set_counts_the_same_in_every_process() -> None:
    code = (
        "from llmsearch_optuna.task.task import Task\n"
        "rows = [{'prompt': 'p', 'answer': {'a', 'b', 'c', 'd'}}]\n"
        "print(list(rows[0]['answer']))\n"
        "print(Task(rows, reference='answer', metric='exact_match').prepare().description['references'])\n"
        "def own(predictions, references): return [0.0 for _ in predictions]\n"
        "print(Task(rows, reference='answer', metric=own).prepare().description)\n"
    )
    orders, said = zip(*(said_by(code, hash_seed=seed).split("\n", 1) for seed in (0, 2)), strict=True)
    assert len(set(orders)) == 2
    assert len(set(said)) == 1


def said_by(code: str, hash_seed: int) -> str:
    environment = {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.floats()), max_size=5))
def test_lists_tuples_and_arrays_of_anything_are_alike(values: list[Any]) -> None:
    assert repr(plain_reference(tuple(values))) == repr(plain_reference(values))
    assert repr(plain_reference(np.array(values, dtype=object))) == repr(plain_reference(values))


def test_rows_without_a_usable_reference_are_all_named_before_anything_is_decoded() -> None:
    references = [["a"], [], ["b"], [], [None]]
    with pytest.raises(InputError, match=r"3 of 5 rows: row 1: the list of references is empty; row 3.*row 4"):
        Metric.of("f1").check(references, [{}] * 5)
    with pytest.raises(InputError, match=r"1 of 3 rows: row 2: the reference 'unknown' has no number"):
        Metric.of("last_number").check(["#### 1", "2", "unknown"], [{}] * 3)
    with pytest.raises(InputError, match=r"80 of 100 rows: row 20: .* and 56 more"):
        Metric.of("last_number").check(["1"] * 20 + ["no"] * 80, [{}] * 100)


@pytest.mark.parametrize(
    "text",
    [
        "你好世界,今天天气很好",
        "नमस्ते दुनिया कैसे हो आप",
        "مرحبا بالعالم كيف حالك",
        "Привет мир как дела",
        "今日は 2023年 です",
    ],
)
@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_scripts_that_rouge_cannot_read_are_named_with_a_metric_that_can(
    name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        Metric.of(name).check([text] * 3, [{}] * 3)
    assert "cannot read 3 of 3 references (row 0, 1, 2)" in caplog.text
    assert f"use {name}_multilingual" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        other = Metric.of(f"{name}_multilingual").check([text] * 3, [{}] * 3)
    assert not caplog.text
    assert other.score_rows([text, "something else"], [text, text], [{}, {}]) == [1.0, 0.0]


def test_bleu_says_so_where_it_finds_no_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        Metric.of("bleu").check(["你好世界今天", "天气很好"], [{}] * 2)
    assert "use chrf" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        Metric.of("bleu").check(["one two three four five", "yes"], [{}] * 2)
        Metric.of("rouge1").check(["un café près de la mer", "42"], [{}] * 2)
    assert not caplog.text


def test_words_of_any_script_are_told_apart() -> None:
    assert words("Cafe\u0301, CAFÉ ｆｕｌｌ") == ["café", "café", "full"]
    assert words("") == words("!?") == []
    assert words("東京2020大会") == ["東", "京", "2020", "大", "会"]


def error_rate(predictions: Any, references: Any) -> list[float]:
    return [float(prediction != reference) for prediction, reference in zip(predictions, references, strict=True)]


def test_an_error_rate_without_a_direction_is_not_guessed_about() -> None:
    with pytest.raises(InputError, match="references themselves 0 and empty texts 1.*direction='minimize'"):
        Task([{"prompt": "a", "reference": "b"}], metric=error_rate).prepare()
    for direction in ("maximize", "minimize"):
        prepared = Task([{"prompt": "a", "reference": "b"}], metric=error_rate, direction=direction).prepare()  # type: ignore[arg-type]
        assert prepared.direction == direction
    assert Task([{"prompt": "a", "reference": "b"}], metric="exact_match").prepare().direction == "maximize"
    assert Task([{"prompt": "a"}], metric=error_rate).prepare().direction == "maximize", "there is no reference"
