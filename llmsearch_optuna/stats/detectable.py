"""The smallest true difference that a comparison finds with a given power, by the tests that the verdict uses.

Formulas for normal scores fail where a verdict needs them most: with 6 rows a permutation test rejects one pattern
only, and with 0/1 scores of which few differ a single win says nothing. So samples are drawn (or, for one 0/1 score
a row, counted) and the tests themselves asked. None always means that there are too few rows to find even large
differences so often. `docs/verdict.md` has the power that was measured for what is claimed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from llmsearch_optuna.stats.paired_tests import FEWEST_CLUSTERS, Floats
from llmsearch_optuna.stats.tail_bound import mean_lower_bounds

POWER = 0.8

_SAMPLES = 400
_FLIPS = 400
_MOST_ENUMERATED = 9
_SHARE_STEPS, _GAIN_STEPS = 9, 16
"""Halvings of an interval: of shares of answers, and of gains."""

MOST_SIMULATED = 300
"""Rows; what more of them find shrinks with the root of their number."""

MOST_COUNTED = 3_000
"""Rows of 0/1 scores; the same holds beyond."""

_IN_PROPORTION = 0.95
"""How much of a gain may go in proportion to the score; the rest is the same on all rows, so that all can gain."""

_HIDDEN_TAIL, _HIDDEN_TAIL_OF_FEW, _WIDE_OF_FEW = 0.04, 1.2, 0.7
"""What is added to the power asked for where spread grows with the score, the second for few rows (divided by their
number), and what is taken off for few rows in any case. Small samples of such scores seldom hold the largest ones, and
without these the power was 5 to 10 points below what was claimed on skewed scores, and as much above on others."""

_HIDDEN_KURTOSIS = 3.0
"""What the kurtosis is taken to be above the one seen where spread grows with the score."""

_WHOLE_ROWS = 0.45
"""The share of rows on which all replicates become right together; on the others each does so by itself. Between
the two lies what scores with a threshold do: with 0 and 1 the claim was too small and too large by a third."""


@dataclass(frozen=True)
class PlannedLook:
    """What a look will be when it is complete, where it is made in stages.

    Attributes:
        prompts: Different prompts.
        alpha: The two-sided level of its last stage.
        unseen_level: The one-sided level of Stringer's bound; `alpha` where it is None.
    """

    prompts: int
    alpha: float
    unseen_level: float | None = None


def detectable_gain(
    baseline: Floats,
    best: Floats,
    *,
    units: int,
    worst: float,
    alpha: float = 0.05,
    unseen_level: float | None = None,
    power: float = POWER,
    seed: int = 0,
) -> float | None:
    """Return the mean gain that sign flips and Stringer's bound find together.

    Pairs are drawn from those given, the two sides swapped at random, with a spread that is as unsure as so few pairs
    leave it (a scaled chi distribution with fewer degrees of freedom the heavier the tails are). The gain is the same
    on all rows, or in proportion to a row's score where differences grow with the scores.

    Args:
        baseline: One score an independent unit, gains positive, [any number from 2].
        best: The other side's, of the same units.
        units: How many units the comparison will have.
        worst: The worst score there can be, gains positive.
        alpha: Of the two-sided test.
        unseen_level: Of Stringer's bound, one-sided; `alpha` where it is None.
        power: The share of comparisons in which it is to be found.
        seed: Of the samples.
    """
    count, differences = len(baseline), best - baseline
    if units < FEWEST_CLUSTERS or count < 2 or not math.isfinite(worst):
        return None
    residuals = differences - differences.mean()
    largest_loss = float((baseline.mean() + best.mean()) / 2 - worst)
    more, units = max(1.0, units / MOST_SIMULATED), min(units, MOST_SIMULATED)
    rng = np.random.Generator(np.random.PCG64(seed))
    places, swapped = rng.integers(0, count, (_SAMPLES, units)), rng.random((_SAMPLES, units)) < 0.5
    proportional = _proportional(np.abs(residuals), baseline + best)
    drawn = np.where(swapped, -1.0, 1.0) * residuals[places] * _unsure_spread(residuals, proportional, rng)
    levels = np.where(swapped, baseline[places], best[places]) - worst
    gains = 1 - proportional + proportional * levels / largest_loss if largest_loss > 0 else np.ones_like(drawn)
    found = np.maximum(
        _flip_limits(drawn, gains, _flips(units, rng), alpha),
        _tail_limits(drawn, gains, largest_loss, alpha if unseen_level is None else unseen_level),
    )
    few = (_HIDDEN_TAIL_OF_FEW * proportional - _WIDE_OF_FEW) / units
    return float(np.quantile(found, min(power + _HIDDEN_TAIL * proportional + few, 0.99)) / math.sqrt(more))


def detectable_share(
    discordant: float, right: float, *, units: int, room: float, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return the difference of two shares of right answers that McNemar's exact test finds, by enumeration.

    A gain turns rows that both got wrong into wins, and lost rows into ties. How many of the lost ones it reaches is
    taken as the mean of two cases: in proportion to all wrong rows, and as many as there are.

    Args:
        discordant: The share of rows on which exactly one side is right where there is no difference.
        right: The share of right answers of each side then.
        units: Rows, one score of each side a row.
        room: The largest difference there can be; see `room_above`.
        alpha: Of the two-sided test.
        power: The share of comparisons in which it is to be found.
    """
    if units < FEWEST_CLUSTERS:
        return None
    if units > MOST_COUNTED:
        gain = detectable_share(discordant, right, units=MOST_COUNTED, room=1 - right, alpha=alpha, power=power)
        gain = None if gain is None else gain * math.sqrt(MOST_COUNTED / units)
        return gain if gain is not None and gain <= room else None
    found = np.arange(units + 1)
    needed = stats.binom.isf(alpha / 2, found, 0.5) + 1  # wins among so many rows that differ

    def missing(gain: float) -> float:
        mended = min(1.0, gain / (1 - right))
        lost = 0.5 * (0.5 * discordant * (1 - mended) + 0.5 * max(0.0, discordant - gain))
        differ = min(1.0, 2 * lost + gain)
        won = min(1.0, (lost + gain) / differ)
        return power - float(stats.binom.pmf(found, units, differ) @ stats.binom.sf(needed - 1, found, won))

    if room <= 0 or missing(room) > 0:
        return None
    return float(optimize.brentq(missing, 1e-9, room, xtol=1e-6))


def detectable_replicated_share(
    baseline: Floats,
    best: Floats,
    *,
    units: int,
    alpha: float = 0.05,
    power: float = POWER,
    seed: int = 0,
) -> float | None:
    """Return the difference of two shares of right answers that sign flips find, where rows have replicates.

    Rows are drawn from those given, the two sides swapped at random; then wrong answers of one side are made right,
    on some rows all replicates together, until the difference is found often enough.

    Args:
        baseline: 1 for right and 0 for wrong answers, [rows, replicates]; one side may have a single replicate.
        best: The other side's.
        units: How many rows the comparison will have.
        alpha: Of the two-sided test.
        power: The share of comparisons in which it is to be found.
        seed: Of the samples.
    """
    if units < FEWEST_CLUSTERS:
        return None
    replicates = max(baseline.shape[1], best.shape[1])
    sides = np.stack([np.resize(side.T, (replicates, len(side))).T for side in (baseline, best)])  # [2, rows, r]
    rng = np.random.Generator(np.random.PCG64(seed))
    places, who = rng.integers(0, sides.shape[1], (_SAMPLES, units)), rng.integers(0, 2, (_SAMPLES, units))
    first, second = sides[who, places].mean(axis=2), sides[1 - who, places]
    luck = rng.random((_SAMPLES, units, replicates))
    luck = np.where(rng.random((_SAMPLES, units, 1)) < _WHOLE_ROWS, luck[:, :, :1], luck)
    flips, right = _flips(units, rng), float(sides.mean())

    def is_found(share: float) -> bool:
        gains = np.where(luck < share, 1.0, second).mean(axis=2) - first
        found = _flip_limits(gains, np.ones_like(gains), flips, alpha) < 0
        found &= mean_lower_bounds(gains, largest_loss=right, level=alpha) > 0
        return bool(found.mean() >= power)

    low, high = 0.0, 1.0
    if not is_found(high):
        return None
    for _ in range(_SHARE_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    gain = high * (1 - right)
    return gain if gain <= room_above(right, sides.shape[1]) else None


def room_above(right: float, rows: int) -> float:
    """Return how much a share of right answers can surely rise: to 1, from the upper end of what it may be.

    Args:
        right: The share seen.
        rows: On so many rows.
    """
    return 1 - float(stats.beta.ppf(0.9, right * rows + 0.5, (1 - right) * rows + 0.5))


def _unsure_spread(residuals: Floats, proportional: float, rng: np.random.Generator) -> Floats:
    """Factors by which the true spread may differ from the one seen, [samples, 1]."""
    count, squares = len(residuals), float(np.sum(residuals**2))
    kurtosis = count * float(np.sum(residuals**4)) / squares**2 if squares > 0 else 3.0
    kurtosis = max(kurtosis, 3.0) + _HIDDEN_KURTOSIS * proportional
    degrees = 2 * (count - 1) / (kurtosis - 1)
    factors: Floats = np.sqrt(degrees * count / (count - 1) / rng.chisquare(degrees, (_SAMPLES, 1)))
    return factors


def _proportional(spreads: Floats, levels: Floats) -> float:
    """How much differences grow with the scores, from 0 to nearly 1."""
    if spreads.std() == 0 or levels.std() == 0:
        return 0.0
    return float(np.clip(1.5 * np.corrcoef(spreads, levels)[0, 1], 0.0, _IN_PROPORTION))


def _flips(units: int, rng: np.random.Generator) -> Floats:
    """Subsets of units, none of them empty, as columns of 0 and 1; all there are where these are few."""
    if units <= _MOST_ENUMERATED:
        every: NDArray[np.int64] = np.arange(1, 2**units)
        return ((every >> np.arange(units)[:, None]) & 1).astype(np.float64)
    subsets = rng.integers(0, 2, (units, _FLIPS - 1)).astype(np.float64)
    subsets[0, subsets.sum(axis=0) == 0] = 1.0
    return subsets


def _flip_limits(samples: Floats, gains: Floats, flips: Floats, alpha: float) -> Floats:
    """How many times `gains` must be added before sign flips call a sample better, [samples]."""
    limits = -(samples @ flips) / (gains @ flips)  # [samples, flips]: from here on this flip is less extreme
    rank = math.floor(alpha / 2 * (flips.shape[1] + 1)) - 1
    found: Floats = -np.partition(-limits, rank, axis=1)[:, rank]
    return found


def _tail_limits(samples: Floats, gains: Floats, largest_loss: float, alpha: float) -> Floats:
    """How many times `gains` must be added before Stringer's bound lies above zero, [samples]."""
    low = np.zeros(len(samples))
    high = np.full(len(samples), 4 * largest_loss + 8 * float(np.abs(samples).max()))
    for _ in range(_GAIN_STEPS):
        middle = (low + high) / 2
        above = mean_lower_bounds(samples + middle[:, None] * gains, largest_loss=largest_loss, level=alpha) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high
