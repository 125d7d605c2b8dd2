"""The judge's share of a difference's spread, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from llmsearch_optuna.stats.judge_noise import JudgeShare, judge_share, pooled_variance


def test_the_pooled_variance_is_that_of_single_judgements() -> None:
    rng = np.random.default_rng(1)
    groups = rng.normal(rng.normal(0, 3, size=(4000, 1)), 0.7, size=(4000, 3))
    assert pooled_variance(list(groups)) == pytest.approx(0.49, rel=0.05)
    assert pooled_variance([[1.0], [2.0]]) is None
    assert pooled_variance([]) is None


def test_the_share_is_what_judging_again_adds() -> None:
    """Texts of two replicates a side, some of them equal: judged anew 20,000 times with a known noise."""
    rng = np.random.default_rng(2)
    sides = [(["a", "b"], ["c", "c"]), (["a", "a"], ["a", "d"]), (["e", "f"], ["e", "f"])]
    noise, repeats = 0.6, 3
    draws = {t: rng.normal(0, noise / np.sqrt(repeats), size=20_000) for t in "abcdef"}
    added = [
        sum(draws[t] for t in winner) / 2 - sum(draws[t] for t in baseline) / 2
        for baseline, winner in [((p[0]), (p[1])) for p in sides]
    ]
    expected = np.mean([one.var() for one in added])
    found = judge_share([0.0, 1.0, 2.0], sides, noise**2, repeats)
    assert found.judging == pytest.approx(expected, rel=0.05)
    assert found.observed == 1.0
    assert found.share == found.judging
    assert added[2].var() == 0, "equal texts cancel"


def test_what_more_repeats_and_rows_would_gain() -> None:
    all_of_it, none = JudgeShare(judging=2.0, observed=1.0), JudgeShare(judging=0.0, observed=1.0)
    assert (all_of_it.share, none.share) == (1.0, 0.0)
    assert all_of_it.gain_of_twice_the_repeats == all_of_it.gain_of_twice_the_rows == pytest.approx(0.293, abs=0.001)
    assert none.gain_of_twice_the_repeats == 0.0
    assert JudgeShare(judging=1.0, observed=0.0).share == 0.0
