"""A metric by row of what another library says of one document and one answer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.types import Bounds

_PROBES = ((0.0, 1.0, 1.0), (0.25, 0.5, 0.0, 0.9, 0.1), (1.0,))


def library_metric(
    name: str,
    score: Callable[[Mapping[str, Any], str], float],
    description: Mapping[str, Any],
    *,
    bounds: Bounds | None = None,
) -> Metric:
    """Return a metric that scores each row by its document.

    Args:
        name: For tables.
        score: ``(row, answer)`` to a number.
        description: How it counts in a fingerprint; JSON-able.
        bounds: The lowest and the highest score, where known.
    """

    def function(
        predictions: Sequence[str], references: object, rows: Sequence[Mapping[str, Any]], completions: object
    ) -> list[float]:
        return [score(row, prediction) for prediction, row in zip(predictions, rows, strict=True)]

    return Metric(name=name, function=function, bounds=bounds, per_row=True, description=dict(description))


def is_mean(aggregate: Callable[[list[float]], Any]) -> bool:
    """Tell whether a function of all rows' scores is their mean, by asking it."""
    try:
        return all(math.isclose(float(aggregate(list(probe))), statistics.fmean(probe)) for probe in _PROBES)
    except Exception:  # one that takes no numbers
        return False
