"""Several metrics as one: the weighted mean of their scores, row by row."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.factories import combining
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.preflight import Preflight
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.types import Bounds

_log = logging.getLogger("llmsearch_optuna.metrics.weighted")


@dataclass(frozen=True, kw_only=True)
class WeightedMetric(Metric):
    """The weighted mean of several metrics by row.

    Attributes:
        parts: The metrics.
        weights: One a part, as they were given; the mean divides by their sum.
    """

    parts: tuple[Metric, ...]
    weights: tuple[float, ...]

    @property
    def is_built_in(self) -> bool:
        """Whether some part compares texts."""
        return any(part.is_built_in for part in self.parts)

    def after(self, postprocess: Callable[[str], str]) -> Metric:
        """Return the metric whose parts score what ``postprocess`` makes of a prediction."""
        return _weighted([part.after(postprocess) for part in self.parts], self.weights, name=self.name)

    def checked(self, tried: Preflight) -> Metric:
        """Return the metric with the forms of its parts known; each is tried alone.

        Raises:
            InputError: A part cannot be used, or scores all rows at once.
        """
        parts = [part.checked(tried) for part in self.parts]
        _refuse_corpus_metrics(parts)
        checked = _weighted(parts, self.weights, name=self.name)
        return replace(checked, bounds=self.bounds if checked.bounds is None else checked.bounds)

    def score_parts(self, answers: Answers) -> dict[str, list[float]]:
        """Return the scores of each part by its name, one a row; errors are those of `score_rows`."""
        return {part.name: part.scores_of(answers) for part in self.parts}

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(part.name for part in self.parts)

    def scores_and_parts(self, answers: Answers) -> tuple[list[float], dict[str, list[float]]]:
        """Return the weighted mean of the parts' scores, and these, one a row."""
        parts = self.score_parts(answers)
        return self.combine(parts), parts

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """Return the weighted mean of the parts' scores, one a row."""
        by_row = zip(*(scores[part.name] for part in self.parts), strict=True)
        return [_mean(row, self.weights) for row in by_row]

    def scores_of(self, answers: Answers) -> list[float]:
        """Return the weighted mean of the parts' scores, one a row."""
        return self.combine(self.score_parts(answers))


@combining
def weighted(metrics: Mapping[Any, Any], options: Mapping[str, Any] | None = None) -> WeightedMetric:
    """Return the weighted mean of several metrics, row by row.

    The mean divides by the sum of the weights, so ``{"rouge1": 2, "json_valid": 1}`` and ``{"rouge1": 1.0,
    "json_valid": 0.5}`` are the same score, and parts from 0 to 1 give one from 0 to 1.

    Args:
        metrics: Metric (anything that `Metric.of` takes) -> its weight, a number above 0.
        options: Name of a built-in part -> its options.

    Raises:
        InputError: No metric, a weight that is none, two parts of one name, a part that scores all rows at once, or
            options of a metric that is no part.
    """
    if not metrics:
        raise InputError("metric={} names no metric; give a weight for each, such as {'rouge1': 1, 'json_valid': 0.5}")
    for part, weight in metrics.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight <= 0:
            raise InputError(f"the weight {short(weight)} of metric {part!r} must be a number above 0")
    if unknown := [name for name in options or {} if name not in metrics]:
        raise InputError(
            f"there are options for {', '.join(unknown)}, which is none of the metrics {', '.join(map(str, metrics))}; "
            "where several metrics are weighted, options stand under the name of theirs"
        )
    parts = [Metric.of(part, options=_options_of(part, options or {})) for part in metrics]
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise InputError(
            f"the metrics {', '.join(names)} must have different names; give one with Metric.of(..., name=)"
        )
    _refuse_corpus_metrics(parts)
    _warn_of_scales(parts)
    return _weighted(parts, tuple(map(float, metrics.values())))


def _options_of(part: Any, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = options.get(part) if isinstance(part, str) else None
    if found is not None and not isinstance(found, Mapping):
        raise InputError(f"the options {short(found)} of metric {part!r} must be a table or dict")
    return found


def _weighted(parts: Sequence[Metric], weights: Sequence[float], name: str | None = None) -> WeightedMetric:
    described = [
        {"weight": weight, "name": part.name, "bounds": part.bounds and list(part.bounds), **part.description}
        for part, weight in zip(parts, weights, strict=True)
    ]
    description: dict[str, Any] = {"weighted": described}
    if all("built_in" in part.description for part in parts):
        description["built_in"] = "weighted"

    def function(
        predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Any], completions: Sequence[Any]
    ) -> list[float]:
        return made.score_rows(predictions, references, rows, completions=completions)

    made = WeightedMetric(
        name=name or " + ".join(_term(part, weight) for part, weight in zip(parts, weights, strict=True)),
        function=function,
        bounds=_bounds(parts, weights),
        per_row=True,
        description=description,
        reads_completions=any(part.reads_completions for part in parts),
        reads_logprobs=any(part.reads_logprobs for part in parts),
        columns=tuple(dict.fromkeys(column for part in parts for column in part.columns)),
        answer=next((part.answer for part in parts if part.answer is not None), None),
        parts=tuple(parts),
        weights=tuple(weights),
    )
    return made


def _term(part: Metric, weight: float) -> str:
    return part.name if weight == 1 else f"{weight:g} {part.name}"


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


def _bounds(parts: Sequence[Metric], weights: Sequence[float]) -> Bounds | None:
    """The range of the mean; None where a part has none."""
    known = [part.bounds for part in parts if part.bounds is not None]
    if len(known) < len(parts):
        return None
    return _mean([low for low, _ in known], weights), _mean([high for _, high in known], weights)


def _refuse_corpus_metrics(parts: Sequence[Metric]) -> None:
    of_all = [part.name for part in parts if part.per_row is False]
    if of_all:
        raise InputError(
            f"metric {', '.join(of_all)} scores all rows at once and has no place in a mean by row; "
            "sentence_bleu and sentence_chrf score by row"
        )


def _warn_of_scales(parts: Sequence[Metric]) -> None:
    ranges = {part.name: part.bounds[1] - part.bounds[0] for part in parts if part.bounds is not None}
    if ranges and max(ranges.values()) > 10 * min(ranges.values()):
        shown = ", ".join(f"{part.name} from {part.bounds[0]:g} to {part.bounds[1]:g}" for part in parts if part.bounds)
        _log.warning("the weighted metrics have different ranges (%s); give the wide ones smaller weights", shown)
