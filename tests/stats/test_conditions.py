"""Limits of means: their bounds against Clopper and Pearson's, and how often a trial is feasible that should not be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.conditions import HOLDOUT_LEVEL, SEARCH_LEVEL, Limit, Standing, fewest_values, standing

RATE = (0.0, 1.0)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@pytest.mark.parametrize("written", ["0.98", "> 0.9", ">= much", ">=", 0.98, None, ">= 1 2", "<= inf"])
def test_what_is_no_limit_is_refused(written: object) -> None:
    with pytest.raises(InputError, match=r"is no limit; write it as '>= 0.98'"):
        Limit.of(written)


def test_limits_are_read_as_they_are_written() -> None:
    assert Limit.of(" >=0.98 ") == Limit(">=", 0.98)
    assert Limit.of("<= 6e1") == Limit("<=", 60.0)
    assert str(Limit.of("<= .50")) == "<= 0.5"


@given(st.integers(1, 60), st.data(), st.sampled_from([SEARCH_LEVEL, HOLDOUT_LEVEL]))
def test_of_rates_the_bounds_are_clopper_and_pearsons(n: int, data: st.DataObject, level: float) -> None:
    right = data.draw(st.integers(0, n))
    found = standing([1.0] * right + [0.0] * (n - right), Limit(">=", 0.5), RATE, level=level)
    exact = stats.binomtest(right, n).proportion_ci(1 - 2 * level, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(SCORES, st.floats(0.05, 0.95), st.sampled_from([">=", "<="]))
def test_bounds_enclose_the_mean_and_better_rows_never_make_it_worse(
    values: list[float], value: float, sense: str
) -> None:
    limit = Limit(sense, value)  # type: ignore[arg-type]
    found = standing(values, limit, RATE, level=SEARCH_LEVEL)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    best = [limit.best(RATE)] * len(values)
    for place in range(len(values)):
        better = standing([*values[:place], *best[place:]], limit, RATE, level=SEARCH_LEVEL)
        assert better.violation <= found.violation + 1e-9  # what is broken with the best rows stays broken


@given(SCORES, st.floats(0.05, 0.95), st.sampled_from([">=", "<="]))
def test_a_state_says_on_which_side_the_interval_lies(values: list[float], value: float, sense: str) -> None:
    found = standing(values, Limit(sense, value), RATE, level=SEARCH_LEVEL)  # type: ignore[arg-type]
    good, bad = (found.low >= value, found.high < value) if sense == ">=" else (found.high <= value, found.low > value)
    assert found.state == ("holds" if good else "broken" if bad else "not shown")


@pytest.mark.parametrize("limit", [Limit(">=", 0.98), Limit(">=", 0.5), Limit("<=", 0.1), Limit(">=", 0.0)])
def test_the_fewest_values_are_those_of_a_search_one_by_one(limit: Limit) -> None:
    def shows(n: int) -> bool:
        return standing([limit.best(RATE)] * n, limit, RATE, level=SEARCH_LEVEL).state == "holds"

    assert fewest_values(limit, RATE, level=SEARCH_LEVEL) == next(n for n in range(1, 500) if shows(n))
    assert fewest_values(Limit(">=", 1.0), RATE, level=SEARCH_LEVEL) is None


def wrongly_feasible(samples: np.ndarray, limit: Limit, ends: tuple[float, float], level: float) -> float:
    return float(np.mean([standing(row, limit, ends, level=level).state == "holds" for row in samples]))


@pytest.mark.parametrize("level", [SEARCH_LEVEL, HOLDOUT_LEVEL])
def test_trials_at_the_limit_are_feasible_as_rarely_as_is_said(level: float) -> None:
    """The hardest case is a true mean that misses the limit by a hair; 2,000 trials each, two standard errors."""
    rng, slack = np.random.default_rng(3), 2 * (level * (1 - level) / 2000) ** 0.5
    rates = (rng.random((2000, 60)) < 0.9).astype(float)
    assert wrongly_feasible(rates, Limit(">=", 0.9), RATE, level) <= level + slack
    rare = (rng.random((2000, 140)) < 0.98).astype(float)
    assert wrongly_feasible(rare, Limit(">=", 0.98), RATE, level) <= level + slack
    # Most answers are short, one in twenty runs to the end: a mean that few rows decide.
    tokens = np.where(rng.random((2000, 60)) < 0.05, 128.0, rng.integers(20, 60, (2000, 60)))
    mean = 0.05 * 128 + 0.95 * 39.5
    assert wrongly_feasible(tokens, Limit("<=", mean - 1e-9), (0.0, 128.0), level) <= level + slack
    shares = rng.beta(8, 2, (2000, 60))
    assert wrongly_feasible(shares, Limit(">=", 0.8 + 1e-9), RATE, level) <= level + slack


def test_plain_means_would_be_wrong_far_more_often() -> None:
    rng = np.random.default_rng(4)
    rates = (rng.random((2000, 60)) < 0.899).astype(float)
    assert np.mean(rates.mean(axis=1) >= 0.9) > 0.4
    assert isinstance(standing(rates[0], Limit(">=", 0.9), RATE, level=0.1), Standing)
