"""Another row, or another replicate of the same rows: which buys more precision for the same tokens.

The variance of a mean difference is (between rows + within a row / replicates) / rows. Numbers in, a plan out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsearch_optuna.stats.finalists import split_variance

Floats = NDArray[np.float64]

HARDLY_BETTER = 1.05
"""Fewer replicates are taken where the standard error is larger by less than this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceVariance:
    """Where the spread of a difference by row comes from.

    Attributes:
        rows: Variance of the rows' true differences.
        sampling: Variance of a single difference between replicates; 0 where nothing is sampled.
    """

    rows: float
    sampling: float

    def of_mean(self, rows: int, replicates: int) -> float:
        """Return the variance of the mean difference over so many rows and replicates."""
        return (self.rows + self.sampling / replicates) / rows

    def best_replicates(self, row_cost: float, replicate_cost: float) -> float:
        """Return how many replicates a row are best where rows are as many as the budget pays for.

        sqrt(within / between * cost of a row / cost of a replicate), as in two-stage sampling (Cochran 1977, Sampling
        Techniques, section 10.6).

        Args:
            row_cost: What a row costs that does not depend on replicates, its prompt say.
            replicate_cost: What each replicate costs.
        """
        if self.sampling == 0:
            return 1.0
        return math.sqrt(self.sampling / self.rows * row_cost / replicate_cost) if self.rows > 0 else math.inf


def difference_variance(baseline: ArrayLike, best: ArrayLike) -> DifferenceVariance | None:
    """Return the split of the differences between two configurations on the same rows.

    None where a side that is sampled has one replicate only: then the two parts cannot be told apart.

    Args:
        baseline: Scores [rows, replicates]; a side that is not sampled has one replicate.
        best: The winner's.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (baseline, best)]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        return None
    splits = [split_variance(side) for side in sides]
    if all(split.sampling_variance is None for split in splits):
        return None
    within = [split.sampling_variance or 0.0 for split in splits]
    noise = sum(part / side.shape[1] for part, side in zip(within, sides, strict=True))
    observed = float((sides[1].mean(axis=1) - sides[0].mean(axis=1)).var(ddof=1))
    return DifferenceVariance(rows=max(0.0, observed - noise), sampling=sum(within))


@dataclass(frozen=True)
class Allocation:
    """How many rows are decoded, and how often each."""

    rows: int
    replicates: int


def allocate(
    variance: DifferenceVariance | None,
    *,
    rows: int,
    budget: float,
    most_replicates: int,
    row_cost: float = 0.0,
    replicate_cost: float = 1.0,
    fewest_rows: int = 1,
) -> Allocation:
    """Return the rows and replicates with the smallest error of the mean difference that a budget pays for.

    Where rows are plentiful this is `DifferenceVariance.best_replicates`, as a whole number; where they run out, what
    is left of the budget goes to replicates, as long as these help.

    >>> plenty = DifferenceVariance(rows=1.0, sampling=1.0)
    >>> allocate(plenty, rows=1000, budget=300, most_replicates=3)
    Allocation(rows=300, replicates=1)
    >>> allocate(plenty, rows=100, budget=300, most_replicates=3)
    Allocation(rows=100, replicates=3)

    Args:
        variance: Of the differences; None where it is not known, which gives one replicate.
        rows: How many there are.
        budget: What may be spent, in the unit of the costs.
        most_replicates: Of a row.
        row_cost: What a row costs apart from its replicates.
        replicate_cost: What each replicate of a row costs.
        fewest_rows: At least so many are decoded, whatever they cost, where there are so many.
    """
    choices = [
        Allocation(_affordable(rows, budget / (row_cost + replicates * replicate_cost), fewest_rows), replicates)
        for replicates in range(1, most_replicates + 1)
    ]
    if variance is None or variance.sampling == 0:
        return choices[0]
    errors = [math.sqrt(variance.of_mean(choice.rows, choice.replicates)) for choice in choices]
    return next(c for c, error in zip(choices, errors, strict=True) if error <= HARDLY_BETTER * min(errors))


def _affordable(rows: int, paid: float, fewest: int) -> int:
    return min(rows, max(fewest, int(paid)))
