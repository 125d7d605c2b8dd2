"""Several baselines, each compared with the winner: p-values that hold for all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmsearch_optuna.types import Direction

Outcome = Literal["better", "worse", "no evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """The winner against one of several baselines, on the held-out rows.

    Attributes:
        name: Of the baseline.
        trial: Its number.
        answer: Whether the winner is better, by the adjusted p-value.
        difference: Winner minus baseline.
        p_value: Two-sided, of this comparison alone.
        adjusted_p_value: By Holm's method, over all baselines.
    """

    name: str
    trial: int
    answer: Outcome
    difference: float
    p_value: float
    adjusted_p_value: float


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (1979): the chance of any wrong claim is their level.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    found = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]


def against_all(
    compared: Mapping[str, tuple[int, float, float]], *, direction: Direction, alpha: float = 0.05
) -> tuple[BaselineComparison, ...]:
    """Return the comparisons with their adjusted p-values.

    Args:
        compared: Name of a baseline -> its trial, the difference (winner minus baseline), and the p-value.
        direction: Of the metric.
        alpha: The chance of any wrong claim.
    """
    adjusted = holm([p_value for _, _, p_value in compared.values()])
    sign = -1.0 if direction == "minimize" else 1.0
    found = []
    for (name, (trial, difference, p_value)), p in zip(compared.items(), adjusted, strict=True):
        answer: Outcome = "no evidence" if p > alpha else "better" if sign * difference > 0 else "worse"
        found.append(
            BaselineComparison(
                name=name, trial=trial, answer=answer, difference=difference, p_value=p_value, adjusted_p_value=p
            )
        )
    return tuple(found)
