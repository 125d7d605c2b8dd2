"""A bound on a mean that holds where rare, large losses may not have been seen: Stringer's, from auditing.

Sign flips and t tests believe that what was not seen does not exist: with twelve rows and a setting that derails on
one row in twenty, half of all samples hold no derailed row. Stringer's bound adds what the rows not seen could hold,
given the most that one of them can lose. Arrays in, numbers out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from llmsearch_optuna.types import Bounds

Floats = NDArray[np.float64]

_LOWEST_LEVEL = 1e-9
_HIGHEST_LEVEL = 0.5


def mean_lower_bound(gains: Floats, *, largest_loss: float, level: float) -> float:
    """Return a lower confidence bound of the mean gain, one-sided at `level`.

    The mean of what was gained, less Stringer's upper bound of the mean loss: losses sorted from the largest, each
    weighted by how much Clopper and Pearson's upper limit of a rate grows with one more of them (Bickel 1992,
    "Inference and auditing: the Stringer bound"). Without any loss it is `largest_loss` times the rule of three, 3 / n
    at 5 %.

    Args:
        gains: Independent paired gains, [n]; losses are negative.
        largest_loss: The most that one more of them could lose, at least 0.
        level: The chance that the bound is too high, between 0 and 1.
    """
    return float(_bounds(gains[None, :], largest_loss, level)[0])


def mean_lower_bounds(gains: Floats, *, largest_loss: float | Floats, level: float) -> Floats:
    """Return `mean_lower_bound` of each row of gains [samples, n], [samples]; the largest loss may be one a sample."""
    return _bounds(gains, largest_loss, level)


def mean_above_p_value(gains: Floats, *, largest_loss: float, threshold: float = 0.0) -> float:
    """Return the smallest level at which `mean_lower_bound` lies above the threshold: a one-sided p-value.

    Args:
        gains: As for `mean_lower_bound`.
        largest_loss: As for `mean_lower_bound`.
        threshold: The mean that is to be ruled out.
    """

    def distance(log_level: float) -> float:
        bound = mean_lower_bound(gains, largest_loss=largest_loss, level=math.exp(log_level))
        return bound - threshold

    lowest, highest = math.log(_LOWEST_LEVEL), math.log(_HIGHEST_LEVEL)
    if distance(highest) <= 0:
        return 1.0
    if distance(lowest) > 0:
        return _LOWEST_LEVEL
    return float(math.exp(optimize.brentq(distance, lowest, highest, xtol=1e-6)))


def worst_score(first: Floats, second: Floats, bounds: Bounds | None, sign: float) -> float:
    """Return the worst possible score, with gains positive; without bounds the worst one seen.

    Minus infinity where there are no bounds and all scores are alike: they do not show how low one can be.
    """
    if bounds is not None:
        return sign * bounds[0 if sign > 0 else 1]
    worst = float(min(first.min(), second.min()))
    return worst if max(first.max(), second.max()) > worst else -math.inf


def _bounds(gains: Floats, largest_loss: float | Floats, level: float) -> Floats:
    n = gains.shape[1]
    losses = -np.sort(np.minimum(gains, 0.0), axis=1)  # [samples, n], largest first
    most = int((losses > 0).sum(axis=1).max(initial=0))
    limits = _rate_limits(n, most, level)
    bounds: Floats = np.maximum(gains, 0.0).mean(axis=1) - largest_loss * limits[0] - losses[:, :most] @ np.diff(limits)
    return bounds


def _rate_limits(n: int, most: int, level: float) -> Floats:
    """Clopper and Pearson's upper limits of a rate after 0 … `most` of n, [most + 1]."""
    seen = np.arange(most + 1)
    limits = np.ones(most + 1)
    inside = seen < n
    limits[inside] = special.betaincinv(seen[inside] + 1.0, n - seen[inside], 1 - level)
    return limits
