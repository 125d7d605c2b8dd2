"""Which of two winners that halves of the rows chose may be recommended, and how cautious the test of both is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL, HalfOutcome, with_chosen
from llmsearch_optuna.stats.verdict import Verdict


def outcome(trial: int, difference: float, overall: float) -> HalfOutcome:
    return HalfOutcome(trial=trial, rows=20, difference=difference, overall=overall)


def chosen(halves: list[HalfOutcome], direction: str = "maximize") -> int:
    return next(half.trial for half in with_chosen(halves, direction) if half.is_chosen)  # type: ignore[arg-type]


def test_the_better_one_on_all_rows_is_chosen() -> None:
    assert chosen([outcome(3, 0.02, 0.04), outcome(4, 0.01, 0.05)]) == 4
    assert chosen([outcome(3, -0.02, -0.04), outcome(4, -0.01, -0.05)], "minimize") == 4


def test_one_that_lost_on_the_rows_it_had_not_seen_is_not_chosen() -> None:
    assert chosen([outcome(3, 0.02, 0.04), outcome(4, -0.01, 0.05)]) == 3
    assert chosen([outcome(3, 0.0, 0.04), outcome(4, 0.001, 0.01)]) == 4


def test_a_tie_goes_to_the_first_half() -> None:
    assert chosen([outcome(3, 0.02, 0.04), outcome(4, 0.02, 0.04)]) == 3


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_minimizing_mirrors_maximizing(values: list[float]) -> None:
    plain = [outcome(0, values[0], values[1]), outcome(1, values[2], values[3])]
    mirrored = [outcome(0, -values[0], -values[1]), outcome(1, -values[2], -values[3])]
    assert chosen(plain) == chosen(mirrored, "minimize")


@given(st.integers(0, 10_000))
def test_a_stricter_bound_is_never_less_cautious(seed: int) -> None:
    rng = np.random.default_rng(seed)
    baseline = 0.4 + 0.1 * rng.normal(size=24)
    best = baseline + 0.05 + 0.05 * rng.normal(size=24)
    plain, strict = (compare(baseline, best, bounds=(-1.0, 2.0), unseen_level=level) for level in (None, UNSEEN_LEVEL))
    assert strict.p_value is not None
    assert plain.p_value is not None
    assert strict.p_value >= plain.p_value
    assert strict.low is not None
    assert plain.low is not None
    assert strict.low <= plain.low
    assert (strict.answer == "better") == (strict.p_value <= 0.05) == (strict.low > 0)


def test_what_is_detectable_allows_for_the_stricter_bound() -> None:
    rng = np.random.default_rng(0)
    baseline = 0.4 + 0.1 * rng.normal(size=24)
    best = baseline + 0.02 * rng.normal(size=24)
    plain, strict = (compare(baseline, best, bounds=(0.0, 1.0), unseen_level=level) for level in (None, UNSEEN_LEVEL))
    assert plain.detectable is not None
    assert strict.detectable is not None
    assert strict.detectable > 1.2 * plain.detectable


def test_a_verdict_keeps_its_halves() -> None:
    rng = np.random.default_rng(1)
    verdict = compare(rng.random(24), rng.random(24)).with_halves(
        with_chosen([outcome(3, 0.02, 0.04), outcome(4, 0.01, 0.05)], "maximize")
    )
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert "trial 3 +0.02 on 20 rows, trial 4 +0.01 on 20 rows" in verdict.notes


@pytest.mark.parametrize("same", [True, False])
def test_the_words_name_whom_they_recommend(same: bool) -> None:
    rng = np.random.default_rng(1)
    baseline = rng.random(24)
    halves = with_chosen([outcome(3, 0.1, 0.1), outcome(3 if same else 4, 0.1, 0.12)], "maximize")
    verdict = compare(baseline, baseline + 0.1 + 0.01 * rng.random(24)).with_halves(halves)
    assert verdict.answer == "better"
    assert ("Both chose the same trial" in verdict.notes) == same
    assert ("Trial 4 is recommended (+0.12 on all rows" in verdict.notes) == (not same)
