"""What this many rows can show at all, said before the search.

From the baseline's scores by row: the smallest true gain that the verdict would find in 4 of 5 cases, and the rows
that a gain of 1, 2 or 5 points would need. Pure functions; the verdict's own numbers are made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.detectable import (
    MOST_COUNTED,
    MOST_SIMULATED,
    POWER,
    detectable_gain,
    detectable_share,
    room_above,
)
from llmsearch_optuna.stats.finalists import split_variance
from llmsearch_optuna.stats.paired_tests import FEWEST_CLUSTERS, Floats
from llmsearch_optuna.types import Bounds, Direction

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
        paired: The true difference that the verdict's test finds with the given power; None where there are too few
            rows to find even a large one so often.
        point: What one point is in the metric's unit.
        rows_needed: Points (1, 2, 5) -> rows, all different, that a paired comparison needs to find them.
        power: The share of cases in which it is found.
        held_out: Whether these rows are held out; False where they are all rows, of which two halves judge each other.
    """

    rows: int
    prompts: int
    replicates: int
    correlation: float
    observed: bool
    paired: float | None
    point: float
    rows_needed: dict[int, int]
    power: float
    held_out: bool = True

    @property
    def text(self) -> str:
        """Two sentences for users, before the search."""
        needed = _rows_text(self.rows_needed)
        if self.prompts < FEWEST_CLUSTERS:
            where = " (held out; the search needs its own)" if self.held_out else ""
            return f"{self._held} cannot show anything. {needed}{where}."
        seen = f"correlation {self.correlation:.2f}, {'as seen' if self.observed else 'assumed'}"
        if self.paired is None:
            return (
                f"{self._held} are too few to find even a large difference in {self.power:.0%} of cases. "
                f"{needed} ({seen})."
            )
        return (
            f"On {self._held}, {_decoded(self.replicates)}, a true difference of {self.paired:.3g} "
            f"({self.paired / self.point:.1f} points) would be found in {self.power:.0%} of cases. {needed} ({seen})."
        )

    @property
    def _held(self) -> str:
        rows = f"{self.rows} held-out rows" if self.held_out else f"{self.rows} rows"
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
    direction: Direction = "maximize",
    points: tuple[int, ...] = (1, 2, 5),
    power: float = POWER,
    alpha: float = 0.05,
    unseen_level: float | None = None,
) -> Power:
    """Say what a look at the holdout could find: the power of the test that the verdict will use.

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
        direction: Of the metric.
        points: For which gains to say the rows needed.
        power: The share of true differences to be found.
        alpha: Of the two-sided test.
        unseen_level: Of Stringer's bound, one-sided; `alpha` where it is None.

    Raises:
        InputError: There are fewer than two scores, or the correlation is not below 1.
    """
    table = np.asarray(baseline, dtype=np.float64)
    split = split_variance(table)
    if split.rows < 2:
        raise InputError(f"{split.rows} scores do not show how much scores vary; at least 2 are needed")
    if correlation is not None and not -1 <= correlation < 1:
        raise InputError(f"correlation={correlation} must be from -1 to below 1")
    units = rows if prompts is None else prompts
    first = _row_means(table)
    if other is None:
        shared = ASSUMED_CORRELATION if correlation is None else correlation
        single = split.rows_variance + (split.sampling_variance or 0.0) / replicates
        spread = math.sqrt(single) / float(first.std(ddof=1)) if np.ptp(first) > 0 else 1.0
        second = first + math.sqrt(1 - shared) * spread * (np.roll(first, 1 + len(first) // 2) - first)
    else:
        second = _row_means(np.asarray(other, dtype=np.float64))
        shared = _correlation(first, second)
    point = (bounds[1] - bounds[0]) / 100 if bounds else abs(float(table.mean())) / 100
    low, high = bounds or (0.0, 1.0)
    if np.all((table == low) | (table == high)):
        found = _of_shares((first - low) / (high - low), shared, high - low, direction, power, alpha)
    else:
        found = _of_scores(first, second, bounds, direction, power, alpha, unseen_level)
    needed = {p: _rows_needed(found, p * point) for p in points} if point else {}
    return Power(
        rows=rows,
        prompts=units,
        replicates=replicates,
        correlation=shared,
        observed=other is not None,
        paired=found(units),
        point=point or 1.0,
        rows_needed=needed,
        power=power,
    )


_Found = Callable[[int], float | None]


def _of_shares(right: Floats, shared: float, unit: float, direction: Direction, power: float, alpha: float) -> _Found:
    """What so many rows find where every score is right or wrong, by one answer a row."""
    rows = len(right)
    seen = float(right.mean()) if direction == "maximize" else 1 - float(right.mean())
    share = (seen * rows + 0.5) / (rows + 1)
    discordant = 2 * share * (1 - share) * (1 - shared)

    def found(units: int) -> float | None:
        room = room_above(seen, rows)
        gain = detectable_share(discordant, share, units=units, room=room, alpha=alpha, power=power)
        return None if gain is None else unit * gain

    return _scaled_beyond(MOST_COUNTED, found)


def _of_scores(
    first: Floats,
    second: Floats,
    bounds: Bounds | None,
    direction: Direction,
    power: float,
    alpha: float,
    unseen_level: float | None,
) -> _Found:
    sign = -1.0 if direction == "minimize" else 1.0
    seen = float(np.min(sign * np.concatenate([first, second])))
    worst = seen if bounds is None else sign * bounds[0 if sign > 0 else 1]

    def found(units: int) -> float | None:
        return detectable_gain(
            sign * first,
            sign * second,
            units=units,
            worst=worst,
            alpha=alpha,
            unseen_level=unseen_level,
            power=power,
        )

    return _scaled_beyond(MOST_SIMULATED, found)


def _scaled_beyond(most: int, found: _Found) -> _Found:
    """Return what so many rows find, asked once for each number up to `most`, and by the root of the number beyond."""
    known = cache(found)

    def scaled(units: int) -> float | None:
        gain = known(min(units, most))
        return None if gain is None else gain * math.sqrt(min(units, most) / units)

    return scaled


def _row_means(table: Floats) -> Floats:
    return table if table.ndim == 1 else np.asarray(table.mean(axis=1))


def _correlation(first: Floats, second: Floats) -> float:
    if first.shape != second.shape:
        raise InputError(f"scores of {len(first)} and {len(second)} rows do not belong to the same rows")
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _rows_needed(found: _Found, gain: float) -> int:
    """The fewest rows on which the gain is found; never so few that no permutation test can reject."""
    low, high = FEWEST_CLUSTERS, FEWEST_CLUSTERS
    while high < _MOST_ROWS and not _is_found(found(high), gain):
        low, high = high + 1, min(4 * high, _MOST_ROWS)
    while low < high:
        middle = (low + high) // 2
        if _is_found(found(middle), gain):
            high = middle
        else:
            low = middle + 1
    return low


def _is_found(smallest: float | None, gain: float) -> bool:
    return smallest is not None and smallest <= gain


def _rows_text(needed: dict[int, int]) -> str:
    if not needed:
        return "How many rows a gain would need cannot be said while the baseline scores 0"
    (first, rows), *others = needed.items()
    listed = [f"A gain of {_points(first)} takes about {rows:,} rows to find"]
    return ", of ".join([*listed, *(f"{_points(p)} about {rows:,}" for p, rows in others)])


def _points(count: int) -> str:
    return f"{count} point{'s' if count > 1 else ''}"


def _decoded(replicates: int) -> str:
    return "decoded once" if replicates == 1 else f"decoded {replicates} times where something is sampled"
