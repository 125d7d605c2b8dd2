"""The search rows: which requests they make, when they are scored, and how scores of prompts come out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmsearch_optuna import score
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.optimize.evaluation import SearchRows, prompt_table, requests_for
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.task import Task
from tests.synthetic import ShuffledServer, TextEngine

GREEDY = GenerationParams.of({"max_new_tokens": 4})
SAMPLING = GenerationParams.of({"max_new_tokens": 4, "do_sample": True})
PROMPTS = ["a", "b", "a", "c", "b", "a"]


def lengths(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(len(p)) for p in predictions]


def total_length(predictions: Sequence[str], references: Sequence[Any]) -> float:
    return float(sum(map(len, predictions)))


def task_of(metric: Any = lengths) -> PreparedTask:
    return Task.of([{"prompt": prompt} for prompt in PROMPTS], metric=Metric.of(metric)).prepare()


def rows_of(metric: Any = lengths, **changed: Any) -> SearchRows:
    return SearchRows(task_of(metric), (5, 3, 0, 1, 2, 4), Objectives(), **changed)


def test_requests_come_row_by_row_with_replicates_together() -> None:
    rows = rows_of(replicates=2)
    asked = rows.requests(SAMPLING, ("search", 3), order=[5, 1])
    assert [(r.row, r.replicate, r.prompt, r.occurrence) for r in asked] == [
        (5, 0, "a", 2), (5, 1, "a", 2), (1, 0, "b", 0), (1, 1, "b", 0)
    ]  # fmt: skip
    assert {r.tag for r in asked} == {("search", 3)}
    assert [r.row for r in rows.requests(GREEDY, ("search", 3))] == list(rows.order), "greedy needs no replicates"


def test_score_asks_for_what_a_trial_asks_for() -> None:
    asked: list[Request] = []

    class Noting(ShuffledServer):
        def submit(self, requests: Any) -> None:
            requests = list(requests)
            asked.extend(requests)
            super().submit(requests)

    task = Task.of([{"prompt": prompt} for prompt in PROMPTS], metric=lengths, system="Be short.")
    score(Noting(TextEngine(), 1), task, {"max_new_tokens": 4, "do_sample": True}, replicates=3)
    prepared = task.prepare()
    expected = requests_for(prepared, asked[0].params, "any", order=range(len(PROMPTS)), replicates=range(3))
    assert [replace(request, tag="any") for request in asked] == expected


@pytest.mark.parametrize(("first", "every", "seen"), [(8, 8, [6]), (2, 2, [2, 4, 6]), (3, 2, [3, 5, 6]), (6, 1, [6])])
def test_the_last_step_is_all_rows(first: int, every: int, seen: list[int]) -> None:
    assert rows_of(first_step=first, step_size=every).steps == seen


def test_rows_with_the_same_prompt_count_together() -> None:
    rows = rows_of()
    texts = {0: "x", 1: "xx", 2: "xxx", 3: "xxxx", 4: "", 5: "xxxxxx"}
    records = rows.score(
        [RowRecord(row, replicate, text * (replicate + 1)) for row, text in texts.items() for replicate in (0, 1)]
    )
    table = prompt_table(rows, records, rows.order)
    mean_of = {"a": (1 + 3 + 6) / 3, "b": (2 + 0) / 2, "c": 4.0}
    in_order = list(dict.fromkeys(PROMPTS[row] for row in rows.order))
    assert [line[0] for line in table] == pytest.approx([mean_of[prompt] for prompt in in_order])
    assert [line[1] for line in table] == pytest.approx([2 * mean_of[prompt] for prompt in in_order])


def test_under_a_corpus_metric_a_prompt_counts_by_what_it_does_to_the_whole() -> None:
    rows = rows_of(total_length)
    records = [RowRecord(row, 0, "x" * (row + 1)) for row in range(6)]
    assert rows.score(records) == records, "no row has a score of its own"
    assert rows.value(records) == 21
    assert len(prompt_table(rows, records, rows.order)) == len(Counter(PROMPTS))


def test_a_fold_is_scored_by_its_own_rows() -> None:
    rows = rows_of(folds=(0, 1, 0, 1, 0, 1))
    records = rows.score([RowRecord(row, 0, "x" * row) for row in range(6)])
    assert rows.fold_values(records) == [pytest.approx((5 + 0 + 2) / 3), pytest.approx((3 + 1 + 4) / 3)]
    assert rows_of().fold_values(records) == []
