"""How much of the error rate each of several looks at growing data may use, so that all together keep to it.

Lan and DeMets' spending functions (1983, "Discrete sequential boundaries for clinical trials", Biometrika 70), of
O'Brien and Fleming's type: little at first, nearly everything at the end. Fractions of the data in, levels out; which
test is made at a level is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]

LEAST_SHARE = 1 / 50
"""What each look uses at least, as a share of the whole: the sign flips that are drawn tell no smaller p-values apart
and have no interval below. A look needs 3.3 standard errors at most by it, where the plain function asks for 4.3."""

_NODES = 96
_HIGHEST = 0.95


def spent(fraction: float, alpha: float) -> float:
    """Return how much of a two-sided `alpha` is spent when this fraction of the data is there.

    O'Brien and Fleming's type of spending on either side, 2 - 2 Phi(z / sqrt(fraction)).

    Args:
        fraction: Above 0, 1 for all of the data.
        alpha: Of all looks together.
    """
    if fraction >= 1:
        return alpha
    return min(alpha, 4 * float(stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction))))


@lru_cache(maxsize=4096)
def levels(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return the two-sided level at which each look may test, so that all together reject `alpha` of true nulls.

    Each look uses `LEAST_SHARE` of the whole at least. The looks' statistics are taken as jointly normal with
    independent increments; a look's level is what it may spend, given that no look before it has rejected (Armitage,
    McPherson and Rowe's recursion, 1969).

    >>> [round(level, 4) for level in levels((0.5, 1.0), 0.05)]
    [0.0031, 0.049]

    Args:
        fractions: Of the data that each look has, rising; the last one may be below 1.
        alpha: Of all looks together.
    """
    if not fractions or fractions[0] <= 0 or any(b <= a for a, b in pairwise(fractions)):
        raise ValueError(f"fractions={fractions} must rise from above 0")
    if fractions == (1.0,):
        return (alpha,)
    found: list[float] = []
    places, density = np.zeros(1), np.ones(1)  # of the sum of the data so far, where nothing was rejected
    before, used = 0.0, 0.0
    for fraction in fractions:
        target = min(alpha, max(spent(fraction, alpha), used + LEAST_SHARE * alpha))
        limit = _limit(places, density, fraction, fraction - before, target - used)
        found.append(2 * float(stats.norm.sf(limit)))
        places, density = _carried(places, density, limit * math.sqrt(fraction), math.sqrt(fraction - before))
        before, used = fraction, target
    return tuple(found)


def repeated_p_value(p_value: float, fractions: Sequence[float], look: int) -> float:
    """Return the smallest `alpha` of all looks at which this look would have rejected.

    Jennison and Turnbull's repeated p-value (1989, "Interim analyses: the repeated confidence interval approach",
    JRSS B 51): it holds at whichever look one stops, and for whatever reason.

    Args:
        p_value: Two-sided, of the look alone.
        fractions: Of the data, of all looks.
        look: Which one it is, from 0.
    """
    until = tuple(fractions[: look + 1])
    if until == (1.0,):
        return p_value

    def distance(log_alpha: float) -> float:
        return levels(until, math.exp(log_alpha))[-1] - p_value

    lowest, highest = math.log(max(p_value, 1e-12)), math.log(_HIGHEST)
    if lowest >= highest or distance(highest) <= 0:
        return max(p_value, _HIGHEST)
    if distance(lowest) >= 0:
        return p_value
    return float(math.exp(optimize.brentq(distance, lowest, highest, xtol=1e-4)))


def _limit(places: Floats, density: Floats, fraction: float, step: float, target: float) -> float:
    """The standard score beyond which, on both sides, `target` of the nulls end at this look."""

    def excess(limit: float) -> float:
        above = stats.norm.sf((limit * math.sqrt(fraction) - places) / math.sqrt(step))
        return 2 * float(density @ above) - target

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, 12.0, xtol=1e-9))


def _carried(places: Floats, density: Floats, end: float, deviation: float) -> tuple[Floats, Floats]:
    """Where the sum is after another step, within -end to end: nodes of a quadrature and their weights."""
    nodes, weights = _legendre()
    new = nodes * end
    steps = (new[:, None] - places[None, :]) / deviation
    kernel = np.exp(-0.5 * steps**2) / (deviation * math.sqrt(2 * math.pi))
    return new, weights * end * (kernel @ density)


@lru_cache(maxsize=1)
def _legendre() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
