"""Rows that were decoded for finalists or on the holdout: scored and stored, and which of them have a score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import Phase
from llmsearch_optuna.storage.row_record import RowRecord, mean
from llmsearch_optuna.storage.study import OpenedStudy


def store_scores(
    opened: OpenedStudy, rows: SearchRows, phase: Phase, number: int, records: Sequence[RowRecord], claim: Claim
) -> list[RowRecord]:
    """Score records, store the scores, and return the scored records.

    Raises:
        MetricError: One of them could not be decoded, or the metric failed; names the row.
    """
    broken = next((r for r in records if r.error is not None), None)
    if broken is not None:
        raise MetricError(f"row {broken.row}: {broken.error}", [broken.row])
    scored = rows.score(records)
    opened.records.set_scores(phase, number, scored, fence=claim)
    return scored


def score_without_failing(
    records: Sequence[RowRecord], score: Callable[[Sequence[RowRecord]], list[RowRecord]]
) -> tuple[list[RowRecord], set[int]]:
    """Score records, and leave out the rows on which the metric fails.

    Args:
        records: Decoded without an error.
        score: Scores all or raises MetricError, which names the rows that it fails on.

    Returns:
        The scored records, and the rows that were left out.
    """
    left, failed = list(records), set[int]()
    while left:
        try:
            return score(left), failed
        except MetricError as error:
            rows = set(error.rows) & {r.row for r in left} or {r.row for r in left}
            failed |= rows
            left = [r for r in left if r.row not in rows]
    return [], failed


def rows_with_score(rows: SearchRows, records: Sequence[RowRecord]) -> set[int]:
    """The rows that have a score in every replicate; of a corpus metric, a text."""
    needs_score = rows.task.metric.per_row is not False
    scored = Counter(r.row for r in records if r.error is None and (r.score is not None or not needs_score))
    replicates = len({r.replicate for r in records})
    return {row for row, count in scored.items() if count == replicates}


def corpus_mean(rows: SearchRows, records: Sequence[RowRecord]) -> float:
    """The corpus metric's value, a mean over the replicates.

    Raises:
        MetricError: It cannot be computed.
    """
    replicates = sorted({r.replicate for r in records})
    return mean([rows.value([r for r in records if r.replicate == which]) for which in replicates])


def corpus_score(
    rows: SearchRows,
    completions: Sequence[Completion],
    references: Sequence[Any],
    columns: Sequence[Mapping[str, Any]],
    /,
) -> float:
    """The corpus metric, or not a number where it cannot be computed on rows that were drawn."""
    try:
        texts = [completion.text for completion in completions]
        return rows.task.metric.score_corpus(texts, references, columns, completions=completions)
    except MetricError:
        return math.nan


def completions_by_row(records: Sequence[RowRecord], order: Sequence[int]) -> list[list[Completion]]:
    """Completions [rows][replicates], rows in this order."""
    found: dict[int, list[Completion]] = {row: [] for row in order}
    for record in sorted(records, key=lambda r: r.replicate):
        if record.row in found:
            found[record.row].append(record.completion)
    return list(found.values())
