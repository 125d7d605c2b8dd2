"""Scores stored completions with another metric; nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.storage.records import Item
from llmsearch_optuna.storage.row_record import RowRecord, by_row, mean


def mean_score(metric: Metric, records: Sequence[RowRecord], items: Mapping[int, Item]) -> float:
    """What a metric gives for the records of one trial: the mean of their rows, or its score of all texts.

    Args:
        metric: One that has been checked.
        records: Without errors.
        items: Row number -> the row of the task.
    """
    references = [items[r.row].reference for r in records]
    columns: list[Mapping[str, Any]] = [items[r.row].columns for r in records]
    completions, numbers = [r.completion for r in records], [r.row for r in records]
    texts = [completion.text for completion in completions]
    if metric.per_row is False:
        return metric.score_corpus(texts, references, columns, completions=completions, numbers=numbers)
    answers = Answers(
        predictions=texts,
        references=references,
        rows=columns,
        completions=completions,
        numbers=numbers,
        samples=[r.completions for r in records] if any(r.further for r in records) else None,
    )
    scores = metric.scores_of(answers)
    rescored = [r.scored(score) for r, score in zip(records, scores, strict=True)]
    return mean(by_row(rescored, numbers))
