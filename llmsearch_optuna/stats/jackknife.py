"""What each prompt does to a score that can only be computed for many rows at once (BLEU of a corpus …).

The jackknife turns such a score into one number a prompt. These stand where a metric by row has its scores: their mean
is the score, their spread is its error, and two configurations can be paired by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_GROUPS = 50
"""How often the score is computed again at most: the error of a standard error is a tenth by then, and every further
group costs a pass over all rows."""


def influences(
    score: Callable[[Sequence[int]], float], labels: NDArray[np.int64], *, most_groups: int = MOST_GROUPS
) -> Floats:
    """Return one value a prompt: the score, plus what leaving the prompt out takes from it, [prompts].

    For a score that is a mean over prompts the values are the prompts' own scores. For any smooth one their mean is
    the score and their variance over their number is the jackknife's variance of it (Efron and Stein 1981,
    https://doi.org/10.1214/aos/1176345462). Where there are many prompts, groups of them are left out together, and
    the group's value is spread over its members so that mean and standard error stay those of the groups.

    Args:
        score: Row places (any subset, at least one) to the score of these rows.
        labels: The prompt of each row, counted from 0, [rows]; rows with the same prompt leave together.
        most_groups: How many groups at most.
    """
    prompts = int(labels.max()) + 1
    whole = score(range(len(labels)))
    if prompts == 1:
        return np.array([whole])
    count = min(prompts, most_groups)
    groups = np.arange(prompts) % count
    left_out = np.array([score(np.flatnonzero(groups[labels] != group).tolist()) for group in range(count)])
    effects = (count - 1) * (left_out.mean() - left_out)
    sizes = np.bincount(groups)
    # A group of m prompts varies by 1/m of what its members do: each gets sqrt(m) times the group's effect.
    values: Floats = whole + np.sqrt(sizes[groups]) * effects[groups]
    values += whole - math.fsum(values) / prompts  # groups of different sizes
    return values
