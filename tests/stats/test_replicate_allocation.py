"""Rows or replicates: the split of differences, and what a budget is spent on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.stats.replicate_allocation import Allocation, DifferenceVariance, allocate, difference_variance


def test_the_split_finds_both_parts() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 1))
    baseline = 0.5 * rng.normal(size=(20_000, 3))
    best = rows + rng.normal(size=(20_000, 3))
    found = difference_variance(baseline, best)
    assert found is not None
    assert (found.rows, found.sampling) == pytest.approx((1.0, 1.25), rel=0.05)


def test_one_replicate_cannot_be_split() -> None:
    assert difference_variance(np.zeros((10, 1)), np.ones((10, 1))) is None


def test_a_side_that_is_not_sampled_adds_no_noise() -> None:
    rng = np.random.default_rng(0)
    found = difference_variance(np.zeros((5000, 1)), rng.normal(size=(5000, 3)))
    assert found is not None
    assert found.sampling == pytest.approx(1.0, rel=0.05)
    assert found.rows == pytest.approx(0.0, abs=0.05)


def test_the_best_number_of_replicates_is_cochrans() -> None:
    variance = DifferenceVariance(rows=1.0, sampling=4.0)
    assert variance.best_replicates(row_cost=4.0, replicate_cost=1.0) == pytest.approx(4.0)
    assert DifferenceVariance(rows=0.0, sampling=1.0).best_replicates(1.0, 1.0) == math.inf
    assert DifferenceVariance(rows=1.0, sampling=0.0).best_replicates(1.0, 1.0) == 1.0


@given(
    between=st.floats(0.1, 5), within=st.floats(0.1, 20), row_cost=st.floats(0.0, 20), replicate_cost=st.floats(0.1, 5)
)
def test_with_rows_in_plenty_the_choice_is_near_the_best_number(
    between: float, within: float, row_cost: float, replicate_cost: float
) -> None:
    variance = DifferenceVariance(rows=between, sampling=within)
    budget = 1e6 * (row_cost + replicate_cost)
    found = allocate(
        variance,
        rows=10**8,
        budget=budget,
        most_replicates=8,
        row_cost=row_cost,
        replicate_cost=replicate_cost,
    )
    best = min(max(variance.best_replicates(row_cost, replicate_cost), 1.0), 8.0)
    rows = budget / (row_cost + best * replicate_cost)
    assert math.sqrt(variance.of_mean(found.rows, found.replicates)) <= 1.07 * math.sqrt(
        (between + within / best) / rows
    ) or found.replicates in (math.floor(best), math.ceil(best))


def test_rows_come_first_and_replicates_take_what_is_left() -> None:
    variance = DifferenceVariance(rows=1.0, sampling=1.0)
    assert allocate(variance, rows=1000, budget=600, most_replicates=3) == Allocation(600, 1)
    assert allocate(variance, rows=200, budget=600, most_replicates=3) == Allocation(200, 3)
    assert allocate(variance, rows=300, budget=600, most_replicates=3) == Allocation(300, 2)


def test_replicates_that_hardly_help_are_left_out() -> None:
    assert (
        allocate(DifferenceVariance(rows=1.0, sampling=0.05), rows=100, budget=600, most_replicates=3).replicates == 1
    )
    assert allocate(None, rows=100, budget=600, most_replicates=3) == Allocation(100, 1)


def test_a_row_is_decoded_however_small_the_budget() -> None:
    assert allocate(None, rows=100, budget=0.5, most_replicates=3, fewest_rows=40).rows == 40
