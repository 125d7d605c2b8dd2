"""How much of a difference's spread is a judge that does not agree with itself. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


def pooled_variance(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the variance of a single judgement, pooled over texts that were judged several times; None without any.

    >>> pooled_variance([[1.0, 3.0], [2.0, 2.0], [5.0]])
    1.0
    """
    kept = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    if not kept:
        return None
    squares = math.fsum(float(((group - group.mean()) ** 2).sum()) for group in kept)
    return squares / sum(len(group) - 1 for group in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeShare:
    """The judge's share of the variance of a mean difference.

    Attributes:
        judging: Variance that the judge adds to a row's difference.
        observed: Variance of the rows' differences, the judge's part included.
    """

    judging: float
    observed: float

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self.judging / self.observed) if self.observed > 0 else 0.0

    @property
    def gain_of_twice_the_repeats(self) -> float:
        """By which share the standard error falls if every text is judged twice as often."""
        return 1.0 - math.sqrt(1.0 - self.share / 2.0)

    @property
    def gain_of_twice_the_rows(self) -> float:
        """By which share it falls with twice as many rows."""
        return 1.0 - math.sqrt(0.5)


def judge_share(
    differences: Sequence[float],
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    variance: float,
    repeats: int,
) -> JudgeShare:
    """Return the judge's share of the spread of differences by row.

    A text has one judgement however often it was decoded, so that its noise counts by the square of its weight in the
    difference: equal texts on both sides cancel.

    Args:
        differences: One a row, of mean scores.
        sides: The texts of both sides of each row, one a replicate.
        variance: Of a single judgement.
        repeats: Judgements whose mean is a text's score.
    """
    weights = [math.fsum(weight**2 for weight in _weights(*pair).values()) for pair in sides]
    observed = float(np.var(np.asarray(differences, dtype=np.float64), ddof=1)) if len(differences) > 1 else 0.0
    return JudgeShare(judging=variance / repeats * math.fsum(weights) / max(1, len(weights)), observed=observed)


def _weights(first: Sequence[str], second: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sign, texts in ((-1.0, first), (1.0, second)):
        for text in texts:
            found[text] = found.get(text, 0.0) + sign / len(texts)
    return found
