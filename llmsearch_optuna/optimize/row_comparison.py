"""What every look at rows that a winner has not seen does: leave out failing rows, compare, ask all baselines.

Which rows those are, and how often they are decoded, the looks say themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.optimize.baselines import UNNAMED
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.scored_rows import (
    completions_by_row,
    corpus_mean,
    corpus_score,
    score_without_failing,
    store_scores,
)
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.corpus_comparison import compare_corpus
from llmsearch_optuna.stats.holm import BaselineComparison, against_all
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import StudyRecords
from llmsearch_optuna.storage.row_record import RowRecord, score_table
from llmsearch_optuna.storage.study import OpenedStudy


def failing_rows(
    opened: OpenedStudy, rows: SearchRows, found: Mapping[int, Sequence[RowRecord]], claim: Claim
) -> set[int]:
    """Store the scores of what was decoded; returns the rows that a trial could not decode, or its metric not score.

    Args:
        opened: The study.
        rows: Have the metric.
        found: Trial number -> what was decoded for it.
        claim: Says that the work is ours.
    """
    failed: set[int] = set()
    for number, records in found.items():
        failed |= {record.row for record in records if record.error is not None}
        _, without_score = score_without_failing(
            [record for record in records if record.error is None],
            lambda left, number=number: store_scores(opened, rows, "holdout", number, left, claim),  # type: ignore[misc]
        )
        failed |= without_score
    return failed


def compare_rows(
    rows: SearchRows, baseline: Sequence[RowRecord], winner: Sequence[RowRecord], order: Sequence[int], **how: Any
) -> Verdict:
    """Compare what a baseline and a winner wrote for the same rows.

    Args:
        rows: Have the metric and the task.
        baseline, winner: With scores.
        order: Rows that count.
        how: See `compare` and `compare_corpus`.
    """
    common: dict[str, Any] = {
        "prompts": [rows.task.distinct[row] for row in order],
        "bounds": rows.task.metric.bounds,
        "direction": rows.direction,
        **how,
    }
    if rows.task.metric.per_row is not False:
        return compare(score_table(baseline, order), score_table(winner, order), **common)
    return compare_corpus(
        partial(corpus_score, rows),
        completions_by_row(baseline, order),
        completions_by_row(winner, order),
        references=[rows.task.references[row] for row in order],
        rows=[rows.task.rows[row] for row in order],
        **common,
    )


def check_corpus_score(rows: SearchRows, *sides: Sequence[RowRecord]) -> None:
    """Raise MetricError where a metric of all rows cannot be computed of one side: that is no open interval."""
    if rows.task.metric.per_row is False:
        for records in sides:
            corpus_mean(rows, records)


def looks_taken(records: StudyRecords) -> int:
    """Return how many looks of a study have compared anything."""
    verdicts = [look.verdict for look in records.looks() if look.verdict is not None]
    return sum(Verdict.from_json(verdict).difference is not None for verdict in verdicts)


def compare_with_baselines(
    verdict: Verdict,
    baselines: Mapping[str, GenerationParams],
    trials: Sequence[FrozenTrial],
    winners: Sequence[int],
    judge: Callable[[int], Verdict],
) -> tuple[BaselineComparison, ...]:
    """Compare the winners with every baseline, the one in use too; those that could not be compared are left out.

    Args:
        verdict: About the one in use, which is trial 0.
        baselines: Name -> parameters; empty where only the one in use counts.
        trials: Of the study.
        winners: Trial numbers.
        judge: Compares the winners with the baseline of a trial number.
    """
    if not baselines or verdict.difference is None:
        return ()
    numbers = {str(t.user_attrs.get("fingerprint")): t.number for t in reversed(trials)}
    found = {name: numbers.get(params.fingerprint) for name, params in baselines.items()}
    in_use = next((name for name, number in found.items() if number == 0), UNNAMED)
    compared = {in_use: (0, verdict.difference, verdict.p_value or 0.0)}
    for name, number in found.items():
        if number is None or number == 0 or set(winners) == {number}:
            continue
        other = judge(number)
        if other.difference is not None and other.p_value is not None:
            compared[name] = (number, other.difference, other.p_value)
    return against_all(compared, direction=verdict.direction)
