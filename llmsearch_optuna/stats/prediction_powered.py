"""A mean difference from many judged rows and a few that people have labelled: prediction-powered inference.

Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023, Prediction-powered inference, Science 382, 669-674: the mean of
what is predicted for all, and the mean error of the prediction where the truth is known (the rectifier), each with its
variance. However biased the judge is, for one side even, the interval holds; a poor judge only makes it wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

FEWEST_LABELS = 5
"""Of fewer labelled rows the variance of the judge's errors is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedMean:
    """A mean difference, corrected for what the judge gets wrong.

    Attributes:
        mean: The estimate.
        low: Of the interval.
        high: Of the interval.
        judged: The judge's own mean difference of all rows.
        rectifier: The mean of human minus judged differences on labelled rows.
        rows: Rows without labels.
        labelled: Rows with labels.
    """

    mean: float
    low: float
    high: float
    judged: float
    rectifier: float
    rows: int
    labelled: int


def corrected_mean(
    judged: ArrayLike, judged_labelled: ArrayLike, human: ArrayLike, *, level: float = 0.95
) -> CorrectedMean:
    """Return mean(judged) + mean(human - judged_labelled), with an interval.

    Its variance is var(judged) / rows + var(human - judged_labelled) / labelled; the interval is Student's with Welch's
    degrees of freedom, since labels are few.

    Args:
        judged: What the judge says of rows without labels [rows]; differences, or scores of one side.
        judged_labelled: What it says of labelled rows [labelled], which must be drawn at random from all.
        human: What people say of them [labelled], on the judge's scale.
        level: Of the interval.
    """
    predicted, on_labelled, truth = (np.asarray(v, dtype=np.float64) for v in (judged, judged_labelled, human))
    if len(on_labelled) != len(truth) or len(truth) < 2 or len(predicted) < 2:
        raise ValueError(f"{len(truth)} labels for {len(on_labelled)} rows beside {len(predicted)} others are too few")
    errors = truth - on_labelled
    parts = (float(predicted.var(ddof=1)) / len(predicted), float(errors.var(ddof=1)) / len(errors))
    mean, variance = float(predicted.mean() + errors.mean()), sum(parts)
    half = 0.0
    if variance > 0:
        degrees = variance**2 / (parts[0] ** 2 / (len(predicted) - 1) + parts[1] ** 2 / (len(errors) - 1))
        half = float(stats.t.ppf(0.5 + level / 2, degrees)) * math.sqrt(variance)
    return CorrectedMean(
        mean=mean,
        low=mean - half,
        high=mean + half,
        judged=float(np.concatenate([predicted, on_labelled]).mean()),
        rectifier=float(errors.mean()),
        rows=len(predicted),
        labelled=len(errors),
    )
