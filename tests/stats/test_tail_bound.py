"""Stringer's bound against Clopper and Pearson's limits, and in the worlds for which it is there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.tail_bound import mean_above_p_value, mean_lower_bound, mean_lower_bounds
from tests.benchmarks.verdict_worlds import chance_of_accepting

Floats = NDArray[np.float64]


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.001, 0.4))
def test_with_losses_of_one_size_it_is_the_exact_limit_of_a_rate(rows: int, share: float, level: float) -> None:
    lost = round(share * rows)
    gains = -np.r_[np.ones(lost), np.zeros(rows - lost)]
    limit = stats.binomtest(lost, rows).proportion_ci(1 - 2 * level, method="exact").high
    assert mean_lower_bound(gains, largest_loss=1.0, level=level) == pytest.approx(-limit)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0.001, 0.4))
def test_the_bound_never_exceeds_the_mean_and_rises_with_the_level(values: list[float], level: float) -> None:
    gains = np.array(values)
    bound = mean_lower_bound(gains, largest_loss=1.0, level=level)
    assert bound < gains.mean() + 1e-12
    assert bound <= mean_lower_bound(gains, largest_loss=1.0, level=1.2 * level) + 1e-12
    assert mean_lower_bounds(np.stack([gains, gains]), largest_loss=1.0, level=level) == pytest.approx([bound, bound])


@pytest.mark.parametrize(("rows", "margin"), [(20, 0.05), (60, 0.05), (200, 0.02)])
def test_the_p_value_of_equal_rows_is_the_chance_of_not_having_seen_a_lost_one(rows: int, margin: float) -> None:
    p_value = mean_above_p_value(np.zeros(rows), largest_loss=1.0, threshold=-margin)
    assert p_value == pytest.approx((1 - margin) ** rows, rel=1e-4)


def test_the_p_value_is_the_level_at_which_the_bound_reaches_the_threshold() -> None:
    gains = np.random.default_rng(0).normal(0.1, 0.1, size=20)
    p_value = mean_above_p_value(gains, largest_loss=0.3)
    assert 0 < p_value < 0.5
    assert mean_lower_bound(gains, largest_loss=0.3, level=p_value) == pytest.approx(0, abs=1e-6)
    assert mean_above_p_value(-gains, largest_loss=0.3) == 1.0


def _derailing(rng: np.random.Generator, rows: int, noise: float) -> tuple[Floats, Floats]:
    """Baseline and winner, equal on average: the winner scores 0 on 5 % of the rows and a little more elsewhere."""
    baseline = np.clip(rng.normal(0.4, 0.1, rows), 0.05, 0.95)
    gained = baseline + 0.05 / 0.95 * baseline + noise * rng.normal(size=rows)
    return baseline, np.clip(np.where(rng.random(rows) < 0.05, 0.0, gained), 0.0, 1.0)


@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize("rows", [12, 18, 30, 60])
def test_a_little_better_but_derailing_on_few_rows_is_called_better_in_one_of_twenty_looks_at_most(
    rows: int, noise: float
) -> None:
    rng, runs = np.random.default_rng(1), 200
    found = [compare(*_derailing(rng, rows, noise), bounds=(0, 1), seed=seed) for seed in range(runs)]
    assert sum(v.answer == "better" for v in found) <= 0.05 * runs + 2 * np.sqrt(runs * 0.05 * 0.95)


@pytest.mark.parametrize("rows", [6, 12, 30, 60])
def test_a_loss_of_the_margin_in_few_rows_is_not_called_acceptable(rows: int) -> None:
    """One row in twenty loses everything, the others are the same: the loss is exactly the margin."""
    rng, runs = np.random.default_rng(2), 300
    accepted = 0
    for seed in range(runs):
        lost = rng.random(rows) < 0.05
        accepted += compare(np.ones(rows), 1.0 - lost, bounds=(0, 1), margin=0.05, seed=seed).recommends_winner
    assert accepted <= 0.035 * runs


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.0), (0.1, 0.05), (0.2, 0.15)])
@pytest.mark.parametrize("rows", [12, 30, 60])
def test_the_chance_of_accepting_a_loss_of_the_margin_is_small_over_all_counts(
    lost: float, won: float, rows: int
) -> None:
    assert chance_of_accepting(lost, won, rows) <= 0.035


def test_equal_texts_are_evidence_about_rows_like_these_only() -> None:
    few, many = (compare(np.ones(rows), np.ones(rows), bounds=(0, 1), margin=0.05) for rows in (6, 80))
    assert few.answer == "no evidence"
    assert few.low is not None
    assert few.low < -0.3
    assert many.answer == "not worse than margin"
