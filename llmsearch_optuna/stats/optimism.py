"""How much a search flattered its winner: its lead on the search rows against its lead on the holdout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True, slots=True)
class Optimism:
    """How much larger the winner's lead was on the search rows than on the holdout, with its interval."""

    gap: float
    low: float
    high: float


def optimism(searched: ArrayLike, held_out: ArrayLike, *, alpha: float = 0.05) -> Optimism | None:
    """Compare the winner's lead over the baseline on the search rows with that on the holdout.

    Both settings are scored on the same rows, so that hard or easy rows change both. The interval is Welch's, for
    two independent samples of rows. None where a sample has fewer than two prompts.

    Args:
        searched: The winner's gain over the baseline on each search prompt, [prompts].
        held_out: The same on each held-out prompt, [prompts].
        alpha: 1 minus the confidence.
    """
    first, second = (np.asarray(gains, dtype=np.float64) for gains in (searched, held_out))
    if min(len(first), len(second)) < 2:
        return None
    gap = float(first.mean() - second.mean())
    if first.std() == second.std() == 0:
        return None
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(1 - alpha)
    return Optimism(gap, float(interval.low), float(interval.high))
