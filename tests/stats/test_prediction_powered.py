"""Coverage of the corrected difference by simulation, and no gain out of a biased judge; against a plain formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from llmsearch_optuna.stats.prediction_powered import corrected_mean


def test_by_hand() -> None:
    found = corrected_mean([1.0, 2.0, 3.0], [1.0, 2.0], [0.0, 2.0])
    assert found.mean == 2.0 - 0.5
    assert (found.judged, found.rectifier, found.rows, found.labelled) == (1.8, -0.5, 3, 2)
    first, second = 1.0 / 3, 0.5 / 2
    degrees = (first + second) ** 2 / (first**2 / 2 + second**2 / 1)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(first + second))
    with pytest.raises(ValueError, match="too few"):
        corrected_mean([1.0, 2.0], [1.0], [1.0])


def test_a_judge_without_error_and_spread_leaves_no_interval() -> None:
    found = corrected_mean([0.5] * 9, [0.5] * 5, [0.5] * 5)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def simulated(truth: float, bias: float, *, labels: int, rows: int = 150, studies: int = 1500, seed: int = 7):
    """Corrected differences of ratings from 1 to 5 under a judge who favours the winner by ``bias``."""
    rng = np.random.default_rng(seed)
    human = rng.choice([-2.0, -1.0, 0.0, 0.0, 1.0, 2.0], size=(studies, rows)) + truth
    judged = 0.6 * human + bias + rng.normal(0.0, 0.5, size=human.shape)
    return [
        corrected_mean(judge[labels:], judge[:labels], people[:labels])
        for judge, people in zip(judged, human, strict=True)
    ]


@pytest.mark.parametrize("labels", [10, 30, 75])
@pytest.mark.parametrize(("truth", "bias"), [(0.0, 0.0), (0.0, 0.8), (0.4, -0.8)])
def test_the_interval_covers_the_true_difference_whatever_the_judges_bias(
    labels: int, truth: float, bias: float
) -> None:
    found = simulated(truth, bias, labels=labels)
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.935 <= covered <= 0.97  # three standard errors are 0.017
    assert np.mean([one.mean for one in found]) == pytest.approx(truth, abs=0.03)


def test_a_biased_judge_makes_no_gain() -> None:
    """The judge alone would find a gain in every study; corrected, the winner looks better in 2.5 % of them."""
    found = simulated(0.0, 0.8, labels=30)
    assert all(one.judged > 0.4 for one in found)
    assert np.mean([one.low > 0 for one in found]) <= 0.025 + 0.012


def test_judged_rows_make_the_interval_narrower_than_labels_alone() -> None:
    """On differences that the judge sees well: half the width that the same labels have alone."""
    rng = np.random.default_rng(3)
    human = rng.normal(0.3, 1.0, size=(200, 300))
    judged = human + rng.normal(0.2, 0.3, size=human.shape)
    widths = []
    for judge, people in zip(judged, human, strict=True):
        found = corrected_mean(judge[30:], judge[:30], people[:30])
        alone = stats.t.ppf(0.975, 29) * people[:30].std(ddof=1) / math.sqrt(30)
        widths.append((found.high - found.mean) / alone)
    assert np.mean(widths) < 0.5
