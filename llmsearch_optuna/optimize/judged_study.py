"""What a study says of the judge that scores it: its noise, what it could not say, and what people's labels make of it.

Stored with the study when its winner has met the baseline, and shown in the report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.metrics.judged import JudgedMetric
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.weighted import WeightedMetric
from llmsearch_optuna.optimize.locked_rows import LockedStudy
from llmsearch_optuna.stats.judge_noise import judge_share
from llmsearch_optuna.stats.prediction_powered import FEWEST_LABELS, corrected_mean
from llmsearch_optuna.storage.row_record import RowRecord, mean
from llmsearch_optuna.storage.study import OpenedStudy

logger = logging.getLogger("llmsearch_optuna.optimize.judged_study")

ATTRIBUTE = "judge"
"""Of the study: sentences by what they are about."""


def judge_notes(opened: OpenedStudy) -> tuple[str, ...]:
    """Return what the study says of its judge, in sentences; nothing where no judge scores it."""
    return tuple(opened.study.user_attrs.get(ATTRIBUTE, {}).values())


def refuse_shared_engine(backend: object, *given: object) -> None:
    """Raise InputError where a judge is asked through the very engine that decodes the search's rows.

    Args:
        backend: Decodes the rows.
        given: What names metrics: one, a mapping or a list of them, or None.
    """
    parts = [part for item in given for part in _metrics_in(item)]
    if any(isinstance(part, JudgedMetric) and part.judgements.backend is backend for part in parts):
        raise InputError(
            "the judge is the engine that decodes the rows, and its answers would get among theirs: give judge() the "
            "model, so that it has an engine of its own"
        )


def _metrics_in(given: object) -> list[object]:
    if isinstance(given, WeightedMetric):
        return list(given.parts)
    if isinstance(given, Mapping | list | tuple):
        return [metric for item in given for metric in _metrics_in(item)]
    return [given]


def note_judge(opened: OpenedStudy, metric: Metric) -> None:
    """Store what is known of the study's judge; what an earlier session knew stays where this one knows nothing.

    Args:
        opened: The study, its winner chosen.
        metric: The study's; nothing is stored where no judge is it.
    """
    if not isinstance(metric, JudgedMetric):
        return
    counts = metric.judgements.counts
    found: dict[str, str] = {}
    if counts["unreadable"]:
        found["unreadable"] = (
            f"{counts['unreadable']} judgements were no number of the scale, and rows without any other failed."
        )
    try:
        study = LockedStudy.of(opened)
        found |= _of_verdict(study, metric)
    except StudyError as problem:  # no verdict, or one that is made in another way
        logger.info("the judge's share of the verdict is not known: %s", problem)
    if not found:
        return
    for text in found.values():
        logger.info("%s", text)
    opened.study.set_user_attr(ATTRIBUTE, {**opened.study.user_attrs.get(ATTRIBUTE, {}), **found})


def _of_verdict(study: LockedStudy, metric: JudgedMetric) -> dict[str, str]:
    sides = [_by_row(study.records[number]) for number in (0, study.winner)]
    rows = [row for row in study.rows if all(row in side for side in sides)]
    if len(rows) < 2:
        return {}
    texts = [([r.text or "" for r in sides[0][row]], [r.text or "" for r in sides[1][row]]) for row in rows]
    differences = [_score(sides[1][row]) - _score(sides[0][row]) for row in rows]
    judged = {text for pair in texts for side in pair for text in side}
    found: dict[str, str] = {}
    if (variance := metric.judgements.variance_of(judged)) is not None:
        found["noise"] = _noise(differences, texts, variance, metric.repeats)
    if metric.labels.scores:
        found["labels"] = _corrected(rows, differences, texts, metric)
    return found


def _noise(
    differences: Sequence[float], texts: Sequence[tuple[Sequence[str], Sequence[str]]], variance: float, repeats: int
) -> str:
    share = judge_share(differences, texts, variance, repeats)
    return (
        f"Judged again, a text's rating varies by a standard deviation of {math.sqrt(variance):.3g}; of {repeats} "
        f"ratings a text, this is {share.share:.0%} of the variance of the difference by row. Twice the repeats would "
        f"make its interval {share.gain_of_twice_the_repeats:.0%} narrower, twice the rows "
        f"{share.gain_of_twice_the_rows:.0%}."
    )


def _corrected(
    rows: Sequence[int],
    differences: Sequence[float],
    texts: Sequence[tuple[Sequence[str], Sequence[str]]],
    metric: JudgedMetric,
) -> str:
    """The difference of people's scores, from the judge's on all rows and people's on some."""
    human: dict[int, float] = {}
    for place, (row, (baseline, winner)) in enumerate(zip(rows, texts, strict=True)):
        before, after = metric.labels.of_row(row, baseline), metric.labels.of_row(row, winner)
        if before is not None and after is not None:
            human[place] = after - before
    others = [d for place, d in enumerate(differences) if place not in human]
    if len(human) < FEWEST_LABELS or len(others) < FEWEST_LABELS:
        return (
            f"{len(human)} of {len(rows)} held-out rows have people's labels for the answers of both sides; a "
            f"corrected difference takes {FEWEST_LABELS} with labels and as many without."
        )
    found = corrected_mean(others, [differences[place] for place in human], list(human.values()))
    return (
        f"Corrected by people's labels of {found.labelled} held-out rows (prediction-powered inference): a difference "
        f"of {found.mean:+.4g} (95% interval {found.low:+.4g} to {found.high:+.4g}); the judge alone says "
        f"{found.judged:+.4g}. It holds where the labelled rows were drawn at random."
    )


def _by_row(records: Sequence[RowRecord]) -> dict[int, list[RowRecord]]:
    found: dict[int, list[RowRecord]] = {}
    for record in records:
        if record.score is not None:
            found.setdefault(record.row, []).append(record)
    return found


def _score(records: Sequence[Any]) -> float:
    return mean([record.score for record in records])
