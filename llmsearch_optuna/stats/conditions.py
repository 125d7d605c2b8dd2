"""Conditions on a mean: whether rows show that it keeps a limit, that it breaks it, or neither.

The bound is Stringer's, with the ends between which every value lies. For values that are one of the two ends it is
Clopper and Pearson's exact bound of a rate; for others it is more cautious. Arrays in, numbers out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.tail_bound import mean_lower_bound
from llmsearch_optuna.types import Bounds

Sense = Literal[">=", "<="]
State = Literal["holds", "broken", "not shown"]

SEARCH_LEVEL = 0.1
"""The share of trials exactly at a limit that may count as feasible on the search rows."""

HOLDOUT_LEVEL = 0.05
"""The same on the held-out rows, where a condition is checked once, for the winner."""

_WRITTEN = re.compile(r"\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """What a mean has to keep.

    >>> str(Limit.of(">= 0.98"))
    '>= 0.98'
    """

    sense: Sense
    value: float

    @classmethod
    def of(cls, written: object) -> Limit:
        """Read a limit such as ``">= 0.98"`` or ``"<= 60"``.

        Raises:
            InputError: It is none.
        """
        found = _WRITTEN.fullmatch(written) if isinstance(written, str) else None
        if found is None:
            raise InputError(f"{written!r} is no limit; write it as '>= 0.98' or '<= 60'")
        return cls(">=" if found[1] == ">=" else "<=", float(found[2]))

    def __str__(self) -> str:
        return f"{self.sense} {self.value:g}"

    def best(self, ends: Bounds) -> float:
        """The value of a row that serves the limit most."""
        return ends[1] if self.sense == ">=" else ends[0]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a mean stands to its limit.

    Attributes:
        mean: Of the values.
        low: Lower bound of the true mean, one-sided.
        high: Upper bound, one-sided.
        limit: What it has to keep.
    """

    mean: float
    low: float
    high: float
    limit: Limit

    @property
    def bound(self) -> float:
        """The bound that has to keep the limit: the lower one where the mean must not be less, else the upper one."""
        return self.low if self.limit.sense == ">=" else self.high

    @property
    def violation(self) -> float:
        """How far the bound is on the wrong side; 0 or less where the limit is kept."""
        return self.limit.value - self.low if self.limit.sense == ">=" else self.high - self.limit.value

    @property
    def state(self) -> State:
        """Whether the values show that the limit is kept, that it is broken, or neither."""
        if self.violation <= 0:
            return "holds"
        is_broken = self.high < self.limit.value if self.limit.sense == ">=" else self.low > self.limit.value
        return "broken" if is_broken else "not shown"


def standing(values: ArrayLike, limit: Limit, ends: Bounds, *, level: float) -> Standing:
    """Return how the mean of independent values stands to a limit.

    Args:
        values: One a prompt, [n]; those beyond the ends widen them.
        limit: What the mean has to keep.
        ends: The least and the highest value that there can be.
        level: The chance of each bound to lie on the wrong side of the true mean.
    """
    found = np.asarray(values, dtype=np.float64)
    low, high = min(ends[0], float(found.min())), max(ends[1], float(found.max()))
    return Standing(
        mean=float(found.mean()),
        low=high + mean_lower_bound(found - high, largest_loss=high - low, level=level),
        high=low - mean_lower_bound(low - found, largest_loss=high - low, level=level),
        limit=limit,
    )


def fewest_values(limit: Limit, ends: Bounds, *, level: float) -> int | None:
    """Return how many of the best values it takes to show that a limit is kept; None where no number does.

    >>> fewest_values(Limit(">=", 0.98), (0.0, 1.0), level=0.1)
    114
    """
    low, high = ends
    room = (high - limit.value if limit.sense == ">=" else limit.value - low) / (high - low)
    if room <= 0:
        return None
    return 1 if room >= 1 else math.ceil(math.log(level) / math.log1p(-room) - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionOutcome:
    """How one condition stands on the held-out rows.

    Attributes:
        name: The metric's, or ``"tokens"``.
        limit: As it is written.
        confidence: Of each bound, one-sided.
        winner: Whether the winner is shown to keep it, to break it, or neither.
        winner_mean: Its plain mean; None where it could not be computed.
        winner_bound: The bound that has to keep the limit.
        baseline: As for the winner.
        baseline_mean: As for the winner.
        baseline_bound: As for the winner.
    """

    name: str
    limit: str
    confidence: float
    winner: State
    winner_mean: float | None
    winner_bound: float | None
    baseline: State
    baseline_mean: float | None
    baseline_bound: float | None

    @classmethod
    def of(cls, name: str, limit: Limit, winner: Standing | None, baseline: Standing | None) -> ConditionOutcome:
        """Make it of both standings; None stands for one that could not be computed."""
        return cls(
            name=name,
            limit=str(limit),
            confidence=1 - HOLDOUT_LEVEL,
            winner="not shown" if winner is None else winner.state,
            winner_mean=None if winner is None else winner.mean,
            winner_bound=None if winner is None else winner.bound,
            baseline="not shown" if baseline is None else baseline.state,
            baseline_mean=None if baseline is None else baseline.mean,
            baseline_bound=None if baseline is None else baseline.bound,
        )
