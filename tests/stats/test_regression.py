"""The gate: quiet while nothing changes, loud when something does, and its false alarms are counted right."""

from __future__ import annotations

import numpy as np
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.paired_tests import Clusters
from llmsearch_optuna.stats.regression import ALPHA, _false_alarm_rate, _Gate, regression


def draws_of(rng: np.random.Generator, right: np.ndarray, replicates: int = 1) -> np.ndarray:
    """0/1 scores [rows, replicates] of rows that are right so often."""
    return rng.binomial(1, right[:, None], (len(right), replicates)).astype(float)


def test_equal_scores_are_no_loss_and_raise_no_false_alarm():
    scores = np.linspace(0, 1, 30)
    found = regression(scores, scores, bounds=(0, 1))
    assert (found.loss, found.p_value, found.is_worse, found.false_alarm_rate, found.changed) == (0, 1, False, 0, 0)


def test_a_clear_loss_raises_the_alarm_in_both_directions():
    rng = np.random.default_rng(0)
    then = rng.uniform(0.5, 1, 40)
    now = then - rng.uniform(0.1, 0.3, 40)
    up, down = regression(then, now, bounds=(0, 1)), regression(1 - then, 1 - now, bounds=(0, 1), direction="minimize")
    assert up.is_worse
    assert down.is_worse
    assert up.loss == pytest.approx(down.loss)
    assert up.p_value == pytest.approx(down.p_value, abs=1e-4)
    assert not regression(now, then, bounds=(0, 1)).is_worse
    assert not regression(then, now, bounds=(0, 1), margin=0.25).is_worse


@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_false_alarms_are_as_rare_as_the_level_says_and_as_counted(margin):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(120):
        right = rng.beta(2, 2, 60)
        found.append(
            regression(draws_of(rng, right, 3), draws_of(rng, right, 3), bounds=(0, 1), margin=margin, draws=40)
        )
    alarms = np.mean([f.is_worse for f in found])
    counted = np.mean([f.false_alarm_rate for f in found])
    assert alarms <= ALPHA + 3 * np.sqrt(ALPHA / 120)
    assert counted <= ALPHA + 0.01
    assert margin > 0 or counted > 0.003


def test_a_loss_within_the_margin_raises_no_more_alarms_than_the_level():
    rng = np.random.default_rng(2)
    alarms = []
    for _ in range(200):
        right = rng.uniform(0.3, 0.9, 80)
        now = draws_of(rng, right - 0.1)
        alarms.append(regression(draws_of(rng, right), now, bounds=(0, 1), margin=0.1, draws=1).is_worse)
    assert np.mean(alarms) <= ALPHA + 3 * np.sqrt(ALPHA / 200)


def test_rows_of_one_prompt_count_once():
    rng = np.random.default_rng(3)
    then = np.repeat(rng.uniform(0.5, 1, 8), 10)
    now = then - np.repeat(rng.normal(0.1, 0.15, 8), 10)
    alone = regression(then, now)
    together = regression(then, now, prompts=np.repeat(np.arange(8), 10).tolist())
    assert together.prompts == 8
    assert together.p_value > 10 * alone.p_value


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="compare the same rows"):
        regression([0.1] * 9, [0.1] * 8)
    with pytest.raises(InputError, match="too few to show a loss"):
        regression([0.1] * 5, [0.1] * 5)
    with pytest.raises(InputError, match="finite"):
        regression([0.1, float("nan")] * 5, [0.1] * 10)


@pytest.mark.parametrize(("prompts", "margin"), [(9, 0.0), (40, 0.0), (40, 0.02)])
def test_false_alarms_are_those_of_the_gate_asked_once_for_each_draw(prompts, margin):
    rng = np.random.default_rng(4)
    clusters = Clusters(rng.normal(size=prompts), rng.integers(1, 4, prompts).astype(float))
    gate = _Gate(margin=margin, room=0.1, seed=7)
    signs = np.random.Generator(np.random.PCG64(7)).choice([-1.0, 1.0], size=(150, prompts))
    slow = [gate.p_value(Clusters(clusters.sums * flips, clusters.counts)) <= ALPHA for flips in signs]
    assert gate.alarms(clusters.sums * signs, clusters.counts).tolist() == slow
    assert _false_alarm_rate(gate, clusters, 150) == np.mean(slow)
    assert prompts < 40 or any(slow) or margin
