"""The comparison of scores by row: the test that decides, and the interval that agrees."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.paired_tests import Clusters, mcnemar_test, sign_flip_test


def test_a_clear_gain_is_better_and_the_numbers_say_so() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.random((40, 3)) * 0.5
    verdict = compare(baseline, baseline + 0.1 + 0.05 * rng.normal(size=(40, 3)), bounds=(0, 1))
    assert verdict.answer == "better"
    assert verdict.recommends_winner
    assert verdict.difference == pytest.approx(0.1, abs=0.02)
    assert verdict.low is not None
    assert verdict.high is not None
    assert 0 < verdict.low < verdict.difference < verdict.high
    assert verdict.p_value is not None
    assert verdict.p_value < 0.001
    assert (verdict.rows, verdict.prompts, verdict.replicates) == (40, 40, 3)
    assert (verdict.wins or 0) + (verdict.ties or 0) + (verdict.losses or 0) == 40
    assert f"{verdict.difference:+.4g}" in verdict.headline
    assert len(verdict.headline.split()) <= 20


def test_swapping_the_two_mirrors_the_verdict() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((12, 2)), rng.random((12, 2)) + 0.4
    there, back = compare(a, b), compare(b, a)
    assert (there.answer, back.answer) == ("better", "worse")
    assert there.p_value == back.p_value
    assert back.interval == pytest.approx((-there.high, -there.low))  # type: ignore[operator]
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_minimize_turns_the_answer_and_leaves_the_numbers() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(30), rng.random(30) - 0.5
    up, down = compare(a, b, direction="maximize"), compare(a, b, direction="minimize")
    assert (up.answer, down.answer) == ("worse", "better")
    assert up.difference == down.difference
    assert (up.wins, up.losses) == (down.losses, down.wins)
    mirrored = compare(-a, -b, direction="minimize")
    assert (mirrored.answer, mirrored.p_value) == (up.answer, up.p_value)
    assert mirrored.interval == pytest.approx((-up.high, -up.low))  # type: ignore[operator]


def test_the_p_value_is_the_enumeration_of_all_sign_flips() -> None:
    d = np.array([0.3, -0.1, 0.2, 0.25, 0.05, 0.4, -0.02])
    extreme = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product((-1, 1), repeat=7)]
    verdict = compare(np.zeros(7), d)
    assert verdict.p_value == pytest.approx(np.mean(extreme))


def test_the_interval_is_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(size=10) + 0.4
    test = sign_flip_test(Clusters(d, np.ones(10)), alpha=0.05, seed=0)
    for shift in np.linspace(-1, 2, 400):
        rejected = sign_flip_test(Clusters(d - shift, np.ones(10)), alpha=0.05, seed=0).p_value <= 0.05
        assert rejected == (not test.low <= shift <= test.high)


def test_zero_one_scores_get_mcnemars_exact_test() -> None:
    baseline = np.r_[np.zeros(12), np.ones(3), np.ones(25)]
    best = np.r_[np.ones(12), np.zeros(3), np.ones(25)]
    verdict = compare(baseline, best, bounds=(0, 1))
    assert verdict.p_value == pytest.approx(stats.binomtest(3, 15, 0.5).pvalue)
    assert (verdict.wins, verdict.ties, verdict.losses) == (12, 25, 3)
    assert verdict.answer == "better"
    on_hundred = compare(baseline * 100, best * 100, bounds=(0, 100))
    assert on_hundred.low == pytest.approx(100 * (verdict.low or 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["continuous", "zero_one", "coarse"]))
def test_test_and_interval_never_contradict_each_other(seed: int, rows: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    gain = rng.normal() * 0.5
    a, b = rng.normal(size=(rows, 2)), rng.normal(size=(rows, 2)) + gain
    if shape == "zero_one":
        a, b = (a[:, :1] > 0).astype(float), (b[:, :1] > 0).astype(float)
    elif shape == "coarse":
        a, b = np.round(a), np.round(b)
    verdict = compare(a, b, prompts=[int(x) for x in rng.integers(0, rows, rows)] if seed % 2 else None)
    assert verdict.interval is not None
    low, high = verdict.interval
    assert verdict.difference is not None
    assert low <= verdict.difference + 1e-9
    assert verdict.difference - 1e-9 <= high
    assert (verdict.answer == "no evidence") == (low <= 0 <= high)
    assert (verdict.answer == "better") == (low > 0)


def test_rows_with_the_same_prompt_are_one_observation() -> None:
    rng = np.random.default_rng(4)
    d = rng.normal(size=8) * 0.3 + 0.12
    once = compare(np.zeros(8), d)
    copied = compare(np.zeros(80), np.repeat(d, 10), prompts=list(np.repeat(np.arange(8), 10)))
    assert copied.p_value == once.p_value
    assert copied.interval == pytest.approx(once.interval)
    assert copied.prompts == 8
    fooled = compare(np.zeros(80), np.repeat(d, 10))
    assert fooled.p_value is not None
    assert copied.p_value is not None
    assert fooled.p_value < copied.p_value


def test_no_difference_at_all_is_no_evidence() -> None:
    scores = np.random.default_rng(5).random((30, 2))
    verdict = compare(scores, scores[:, ::-1])
    assert verdict.answer == "no evidence"
    assert verdict.p_value == 1.0
    rule_of_three = (scores.mean() - scores.min()) * (1 - 0.05 ** (1 / 30))
    assert (verdict.low, verdict.high) == pytest.approx((-rule_of_three, rule_of_three))
    assert verdict.ties == 30
    assert not verdict.recommends_winner


def test_a_handful_of_rows_can_never_convince() -> None:
    for rows in range(1, 6):
        verdict = compare(np.zeros(rows), np.arange(rows) + 1.5)
        assert verdict.answer == "no evidence"
        assert verdict.low is None
        assert "no limit" in verdict.sentence
    assert compare(np.zeros(6), np.arange(6) + 1.0).answer == "better"


def test_no_difference_has_no_sign_when_minimizing() -> None:
    verdict = compare(np.ones(8), np.ones(8), direction="minimize")
    assert "difference: +0 (" in verdict.sentence


def test_a_margin_asks_whether_the_winner_is_good_enough() -> None:
    rng = np.random.default_rng(6)
    baseline = rng.random(400)
    best = baseline - 0.01 + 0.02 * rng.normal(size=400)
    assert compare(baseline, best).answer == "worse"
    good_enough = compare(baseline, best, margin=0.03)
    assert good_enough.answer == "not worse than margin"
    assert good_enough.recommends_winner
    assert good_enough.margin_p_value is not None
    assert good_enough.margin_p_value < 0.001
    assert compare(baseline, best, margin=0.005).answer == "worse"
    assert compare(baseline, baseline + 0.05 * rng.random(400), margin=0.03).answer == "better"
    assert compare(baseline, best, margin=0.0).margin is None


def test_one_deterministic_replicate_compares_with_many() -> None:
    rng = np.random.default_rng(7)
    verdict = compare(rng.random((25, 4)), rng.random(25) + 0.5)
    assert (verdict.answer, verdict.replicates) == ("better", 4)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 2.0], [1.0]), ([], []), ([float("nan")], [1.0]), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))],
)
def test_scores_that_cannot_be_compared_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(InputError):
        compare(a, b)


def test_one_label_a_row_is_needed() -> None:
    with pytest.raises(InputError, match="labels"):
        compare([0.0, 1.0], [1.0, 1.0], prompts=["a"])


@pytest.mark.parametrize("shape", ["continuous", "skewed", "zero_one"])
def test_equal_configurations_are_called_better_rarely_and_the_interval_covers(shape: str) -> None:
    rng, better, covered, runs = np.random.default_rng(9), 0, 0, 250
    for seed in range(runs):
        rows = rng.normal(size=30)
        a, b = rows + rng.normal(size=30), rows + rng.normal(size=30)
        if shape == "skewed":
            a, b = np.exp(a), np.exp(b)
        elif shape == "zero_one":
            a, b = (a > 0.5).astype(float), (b > 0.5).astype(float)
        verdict = compare(a, b, seed=seed)
        better += verdict.answer == "better"
        covered += verdict.interval is not None and verdict.interval[0] <= 0 <= verdict.interval[1]
    assert better / runs <= 0.05
    assert covered / runs >= 0.93


def test_mcnemars_interval_covers_where_few_rows_differ() -> None:
    rng, covered, runs = np.random.default_rng(10), 0, 2000
    for _ in range(runs):
        wins, losses, _ = rng.multinomial(30, [0.08, 0.02, 0.9])
        test = mcnemar_test(int(wins), int(losses), 30, alpha=0.05)
        covered += test.low <= 0.06 <= test.high
    assert covered / runs >= 0.93


@pytest.mark.parametrize(
    ("rows", "wrong", "right"), [(18, 0.02, 0.06), (30, 0.02, 0.06), (30, 0.02, 0.02), (30, 0.4, 0.45)]
)
def test_the_interval_covers_where_nearly_all_replicates_fail(rows: int, wrong: float, right: float) -> None:
    rng = np.random.default_rng(7)
    covered, runs = 0, 150
    for seed in range(runs):
        chances = (rng.beta(p, 1 - p, (rows, 1)) for p in (wrong, right))  # rows differ: some always work, most never
        baseline, best = ((rng.random((rows, 3)) < chance).astype(float) for chance in chances)
        interval = compare(baseline, best, bounds=(0, 1), seed=seed).interval
        assert interval is not None
        covered += interval[0] <= right - wrong <= interval[1]
    assert covered >= 0.92 * runs  # 85 % of 18 rows before there were pseudo rows


def test_rows_that_all_fail_prove_no_equality() -> None:
    verdict = compare(np.zeros((20, 3)), np.zeros((20, 3)), bounds=(0, 1))
    assert verdict.interval is not None
    assert verdict.interval[0] < -0.05
    assert verdict.interval[1] > 0.05
    assert verdict.p_value == 1.0


def test_replicated_zero_one_scores_scale_with_their_bounds() -> None:
    rng = np.random.default_rng(3)
    baseline, best = rng.integers(0, 2, (2, 25, 2)).astype(float)
    ones = compare(baseline, best, bounds=(0, 1))
    tens = compare(10 * baseline, 10 * best, bounds=(0, 10))
    assert ones.interval is not None
    assert tens.interval == pytest.approx([10 * end for end in ones.interval])
    assert tens.p_value == ones.p_value


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_scores_of_any_size_get_the_same_test(size: float) -> None:
    """Tiny differences that scatter are not taken for equal ones, of which only the signs would count."""
    rng = np.random.default_rng(5)
    baseline = rng.normal(size=15)
    best = baseline + rng.gamma(1.0, size=15) - 0.4
    plain, scaled = compare(baseline, best), compare(size * baseline, size * best)
    assert scaled.p_value == plain.p_value
    assert plain.interval is not None
    assert scaled.interval == pytest.approx([size * end for end in plain.interval], rel=1e-6)


def test_replicates_of_zero_one_scores_keep_their_interval_and_their_means_would_lose_it() -> None:
    """Sign flips of replicate means, as if they were continuous scores, cover too seldom: nearly all rows are ties."""
    rng, runs, wrong, right = np.random.default_rng(17), 80, 0.02, 0.06
    covered = np.zeros(2)
    for seed in range(runs):
        chances = (rng.beta(p, 1 - p, (18, 1)) for p in (wrong, right))
        baseline, best = ((rng.random((18, 3)) < chance).astype(float) for chance in chances)
        means = Clusters(best.mean(axis=1) - baseline.mean(axis=1), np.ones(18))
        by_means = sign_flip_test(means, alpha=0.05, seed=seed)
        low, high = compare(baseline, best, bounds=(0, 1), seed=seed).interval or (0.0, 0.0)
        covered += [by_means.low <= right - wrong <= by_means.high, low <= right - wrong <= high]
    assert covered[0] <= 0.9 * runs
    assert covered[1] >= 0.97 * runs
