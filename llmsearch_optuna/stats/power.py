"""What this many rows can show at all, said before the search.

From the baseline's scores by row: the smallest true gain that the verdict would find in 4 of 5 cases, and the rows
that a gain of 1, 2 or 5 points would need. Pure functions; the verdict's own numbers are made elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.finalists import split_variance
from llmsearch_optuna.stats.paired_tests import FEWEST_CLUSTERS
from llmsearch_optuna.types import Bounds

ASSUMED_CORRELATION = 0.5
"""Between two configurations' scores by row, where only one has been seen; cautious for neighbouring settings."""

_MOST_ROWS = 10**7


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a comparison on the holdout can find.

    Attributes:
        rows: Held-out rows.
        prompts: How many different prompts they have: these are what a comparison counts.
        replicates: Of each.
        correlation: Between the two configurations' scores by row; `observed` says whether it was seen or assumed.
        observed: True when a second configuration's scores were there.
        paired: The true difference that the paired comparison finds with the given power; None for fewer than 2
            prompts.
        unpaired: The same if baseline and winner were decoded on different rows.
        point: What one point is in the metric's unit.
        rows_needed: Points (1, 2, 5) -> rows, all different, that a paired comparison needs to find them.
        power: The share of cases in which it is found.
    """

    rows: int
    prompts: int
    replicates: int
    correlation: float
    observed: bool
    paired: float | None
    unpaired: float | None
    point: float
    rows_needed: dict[int, int]
    power: float

    @property
    def text(self) -> str:
        """Two sentences for users, before the search."""
        if self.paired is None:
            return (
                f"{self._held} cannot show anything. "
                f"{_rows_text(self.rows_needed)} (held out; the search needs its own)."
            )
        seen = "as seen" if self.observed else "assumed"
        return (
            f"On {self._held}, decoded {_times(self.replicates)}, a true difference of "
            f"{self.paired:.3g} ({self.paired / self.point:.1f} points) would be found in {self.power:.0%} of cases; "
            f"compared on different rows it would take {self.unpaired:.3g}. {_rows_text(self.rows_needed)} "
            f"(correlation {self.correlation:.2f}, {seen})."
        )

    @property
    def _held(self) -> str:
        rows = f"{self.rows} held-out rows"
        return rows if self.prompts == self.rows else f"{rows} with {self.prompts} different prompts"


def minimum_detectable(
    baseline: ArrayLike,
    *,
    rows: int,
    prompts: int | None = None,
    replicates: int = 1,
    other: ArrayLike | None = None,
    correlation: float | None = None,
    bounds: Bounds | None = None,
    points: tuple[int, ...] = (1, 2, 5),
    power: float = 0.8,
    alpha: float = 0.05,
) -> Power:
    """Say what a look at the holdout could find.

    Args:
        baseline: The baseline's scores, [prompts] or [prompts, replicates], as many as there are.
        rows: How many rows will be held out.
        prompts: How many different prompts they have; default: all rows are different.
        replicates: How often each will be decoded; where `baseline` has several replicates, the share of chance in
            decoding is known and shrinks accordingly.
        other: Another configuration's scores on the same rows (greedy, say): gives the correlation and the spread of
            differences.
        correlation: Of scores by row between two configurations, where `other` is missing; default 0.5.
        bounds: Of the metric: a point is a hundredth of their distance. Without bounds, a hundredth of the
            baseline's mean.
        points: For which gains to say the rows needed.
        power: The share of true differences to be found.
        alpha: Of the two-sided test.

    Raises:
        InputError: There are fewer than two scores, or the correlation is not below 1.
    """
    split = split_variance(baseline)
    if split.rows < 2:
        raise InputError(f"{split.rows} scores do not show how much scores vary; at least 2 are needed")
    if correlation is not None and not -1 <= correlation < 1:
        raise InputError(f"correlation={correlation} must be from -1 to below 1")
    units = rows if prompts is None else prompts
    single = split.rows_variance + (split.sampling_variance or 0.0) / replicates
    if other is None:
        shared = ASSUMED_CORRELATION if correlation is None else correlation
        paired_variance = 2 * single * (1 - shared)
    else:
        paired_variance, shared = _observed(baseline, other)
    table = np.asarray(baseline, dtype=np.float64)
    point = (bounds[1] - bounds[0]) / 100 if bounds else abs(float(table.mean())) / 100
    needed = {p: _rows_needed(math.sqrt(paired_variance), p * point, power, alpha) for p in points} if point else {}
    return Power(
        rows=rows,
        prompts=units,
        replicates=replicates,
        correlation=shared,
        observed=other is not None,
        paired=_detectable(math.sqrt(paired_variance / units), units - 1, power, alpha) if units > 1 else None,
        unpaired=_detectable(math.sqrt(2 * single / units), 2 * units - 2, power, alpha) if units > 1 else None,
        point=point or 1.0,
        rows_needed=needed,
        power=power,
    )


def _observed(baseline: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """Variance of the paired differences, and the correlation of the two."""
    first, second = (np.asarray(s, dtype=np.float64) for s in (baseline, other))
    first, second = (s if s.ndim == 1 else s.mean(axis=1) for s in (first, second))
    if first.shape != second.shape:
        raise InputError(f"scores of {len(first)} and {len(second)} rows do not belong to the same rows")
    variance = float((second - first).var(ddof=1))
    if first.std() == 0 or second.std() == 0:
        return variance, 0.0
    return variance, float(np.corrcoef(first, second)[0, 1])


def _detectable(standard_error: float, degrees: int, power: float, alpha: float) -> float:
    return float(standard_error * (stats.t.isf(alpha / 2, degrees) + stats.t.isf(1 - power, degrees)))


def _rows_needed(spread: float, gain: float, power: float, alpha: float) -> int:
    """The fewest rows on which the gain is detectable; never so few that no permutation test can reject."""
    low, high = FEWEST_CLUSTERS, _MOST_ROWS
    while low < high:
        middle = (low + high) // 2
        if _detectable(spread / math.sqrt(middle), middle - 1, power, alpha) <= gain:
            high = middle
        else:
            low = middle + 1
    return low


def _rows_text(needed: dict[int, int]) -> str:
    if not needed:
        return "How many rows a gain would need cannot be said while the baseline scores 0"
    (first, rows), *others = needed.items()
    listed = [f"A gain of {_points(first)} takes about {rows:,} rows to find"]
    return ", of ".join([*listed, *(f"{_points(p)} about {rows:,}" for p, rows in others)])


def _points(count: int) -> str:
    return f"{count} point{'s' if count > 1 else ''}"


def _times(replicates: int) -> str:
    return "once" if replicates == 1 else f"{replicates} times"
