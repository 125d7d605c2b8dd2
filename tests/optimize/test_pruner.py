"""The paired pruner: its looks, its three rules, and the risk it promises, counted."""

from __future__ import annotations

import itertools

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.pruner import PairedPruner, _beta_binomial, make_pruner
from tests.benchmarks.array_study import run_trials

PRUNER = PairedPruner()


def test_looks_come_every_eight_rows_and_end_with_all_rows() -> None:
    assert PRUNER.looks(32) == (8, 16, 24, 32)
    assert PRUNER.looks(35) == (8, 16, 24, 32, 35)
    assert PRUNER.looks(8) == (8,)
    assert PRUNER.looks(5) == (5,)
    assert PairedPruner(min_rows=16).looks(40) == (16, 24, 32, 40)


@given(st.integers(9, 500), st.floats(0.001, 0.5))
def test_the_looks_together_spend_the_risk(n_total: int, risk: float) -> None:
    pruner = PairedPruner(risk=risk)
    levels = [pruner.level(k, n_total) for k in pruner.looks(n_total)]
    assert sum(levels) == pytest.approx(risk)
    assert levels[-1] == 0.0
    assert levels[:-1] == sorted(levels[:-1], reverse=True)


@pytest.mark.parametrize("settings_", [{"risk": 0.0}, {"risk": 1.0}, {"min_rows": 2}, {"step": 0}])
def test_settings_that_mean_nothing_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(InputError):
        PairedPruner(**settings_)  # type: ignore[arg-type]


def test_curtailment_stops_at_the_first_hopeless_row_and_not_before() -> None:
    incumbent = np.r_[np.full(8, 0.5), np.full(8, 0.9)]  # mean 0.7: the rest may add 0.5
    hopeless = PRUNER.decide(np.full(8, 0.4), incumbent, 16, bounds=(0, 1), direction="maximize")
    assert hopeless is not None
    assert hopeless.rule == "curtailment"
    assert "0.7" in hopeless.reason
    assert "8 of 16" in hopeless.reason
    assert PRUNER.decide(np.full(8, 0.41), incumbent, 16, bounds=(0, 1), direction="maximize") is None


def test_no_bounds_no_curtailment() -> None:
    assert PRUNER.decide(np.full(8, -5.0), np.full(16, 0.9), 16, bounds=None, direction="maximize") is None  # s = 0


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_curtailment_and_two_valued_rule_never_stop_what_no_ending_could_make_worse(seed: int) -> None:
    """Curtailment is exact: whenever it fires, no completion of the rows ends above the incumbent."""
    rng = np.random.default_rng(seed)
    incumbent = rng.integers(0, 2, 12).astype(float)
    trial = rng.integers(0, 2, 8).astype(float)
    stop = PRUNER.decide(trial, incumbent, 12, bounds=(0, 1), direction="maximize")
    can_win = any(trial.sum() + sum(rest) > incumbent.sum() for rest in itertools.product((0, 1), repeat=4))
    assert (stop is not None and stop.rule == "curtailment") == (not can_win)


def test_predictive_rule_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    incumbent, trial = rng.normal(size=32), rng.normal(size=16) - 2.0
    d = trial - incumbent[:16]
    expected = stats.t.sf(-32 * d.mean() / (16 * d.std(ddof=1) * np.sqrt(32 / (16 * 16))), 15)
    stop = PRUNER.decide(trial, incumbent, 32, bounds=None, direction="maximize")
    assert stop is not None
    assert stop.rule == "predictive"
    assert stop.chance == pytest.approx(expected)
    assert stop.chance < stop.level


def test_a_trial_that_leads_or_ties_is_never_stopped() -> None:
    rng = np.random.default_rng(1)
    incumbent = rng.random(40)
    assert PRUNER.decide(incumbent[:16], incumbent, 40, bounds=(0, 1), direction="maximize") is None
    assert PRUNER.decide(incumbent[:16] + 0.001, incumbent, 40, bounds=None, direction="maximize") is None
    ones = (incumbent > 0.5).astype(float)
    assert PRUNER.decide(ones[:16], ones, 40, bounds=(0, 1), direction="maximize") is None


def test_only_the_looks_decide() -> None:
    rng = np.random.default_rng(2)
    incumbent = rng.normal(size=32)
    for rows in range(1, 33):
        stop = PRUNER.decide(incumbent[:rows] - rng.random(rows) - 9, incumbent, 32, bounds=None, direction="maximize")
        assert (stop is not None) == (rows in (8, 16, 24))


def test_minimize_is_the_mirror_image() -> None:
    rng = np.random.default_rng(3)
    for bounds in (None, (-4.0, 6.0)):
        incumbent, trial = np.clip(rng.normal(size=32), -4, 6), np.clip(rng.normal(size=16) - 1.0, -4, 6)
        mirrored = (-bounds[1], -bounds[0]) if bounds else None
        up = PRUNER.decide(trial, incumbent, 32, bounds=bounds, direction="maximize")
        down = PRUNER.decide(-trial, -incumbent, 32, bounds=mirrored, direction="minimize")
        assert (up and (up.rule, up.chance)) == (down and (down.rule, down.chance))
    zeros_win = PRUNER.decide(np.ones(16), np.zeros(40), 40, bounds=None, direction="minimize")
    assert zeros_win is not None
    assert zeros_win.rule == "exact_paired"


def test_the_exact_paired_chance_is_a_plain_enumeration() -> None:
    incumbent = np.array([1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1], dtype=float)
    trial = np.array([0, 1, 0, 0, 0, 0, 1, 1], dtype=float)
    wins = stats.betabinom(4, 0 + 0.5, 2 + 0.5)  # 4 of the 10 remaining rows were failed by the incumbent
    losses = stats.betabinom(6, 3 + 0.5, 3 + 0.5)
    chance = sum(wins.pmf(w) * losses.pmf(x) for w in range(5) for x in range(7) if 0 + w > 3 + x)
    sure = PairedPruner(risk=0.9).decide(trial, incumbent, 18, bounds=(0, 1), direction="maximize")
    assert sure is not None
    assert sure.rule == "exact_paired"
    assert sure.chance == pytest.approx(chance)
    assert "won 0 and lost 3" in sure.reason


def test_two_values_are_recognised_on_any_bounds() -> None:
    incumbent = np.r_[np.ones(30), np.zeros(10)]
    trial = np.zeros(16)
    on_unit = PairedPruner(risk=0.2).decide(trial, incumbent, 40, bounds=(0, 1), direction="maximize")
    on_hundred = PairedPruner(risk=0.2).decide(trial, incumbent * 100, 40, bounds=(0, 100), direction="maximize")
    assert on_unit is not None
    assert on_hundred is not None
    assert on_unit.chance == on_hundred.chance
    partial = PRUNER.decide(np.r_[np.zeros(15), 0.5], incumbent, 40, bounds=(-9, 9), direction="maximize")
    assert partial is None or partial.rule == "predictive"


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
def test_beta_binomial_agrees_with_scipy(n: int, successes: int, failures: int) -> None:
    ours = _beta_binomial(n, successes, failures)
    assert np.allclose(ours, stats.betabinom(n, successes + 0.5, failures + 0.5).pmf(np.arange(n + 1)))


@pytest.mark.parametrize("bad", [[0.1, float("nan")] * 4, [0.1, 2.0] * 4])
def test_scores_that_cannot_be_are_refused(bad: list[float]) -> None:
    with pytest.raises(InputError):
        PRUNER.decide(bad, np.zeros(16), 16, bounds=(0, 1), direction="maximize")


@pytest.mark.parametrize("shape", ["normal", "zero_one"])
def test_what_would_end_just_above_is_dropped_at_most_as_often_as_the_risk_says(shape: str) -> None:
    """The hardest winner: it ends above the incumbent by next to nothing (0/1: by one row)."""
    rng, n_total, dropped, runs = np.random.default_rng(4), 48, 0, 800
    pruner = PairedPruner(risk=0.1)
    for _ in range(runs):
        if shape == "normal":
            incumbent = rng.normal(size=n_total)
            d = rng.normal(size=n_total)
            trial = incumbent + d - d.mean() + 1e-6
        else:
            incumbent = rng.permutation(np.r_[np.ones(24), np.zeros(24)])
            trial = incumbent.copy()
            trial[rng.permutation(np.flatnonzero(incumbent == 1))[:10]] = 0
            trial[rng.permutation(np.flatnonzero(incumbent == 0))[:11]] = 1
        looks = pruner.looks(n_total)[:-1]
        stops = [pruner.decide(trial[:k], incumbent, n_total, bounds=None, direction="maximize") for k in looks]
        dropped += any(stops)
    assert dropped / runs <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / runs)
    assert dropped > 0  # a pruner that never dares would pass otherwise


def test_running_values_are_judged_from_the_fourth_look_on() -> None:
    rng = np.random.default_rng(5)
    looks = PRUNER.looks(80)[:-1]
    incumbent = 30 + rng.normal(size=len(looks)) * 0.2
    far_behind = incumbent - 12 + rng.normal(size=len(looks)) * 0.2
    verdicts = [
        PRUNER.decide_running(far_behind[:n], incumbent, 80, direction="maximize") for n in range(1, len(looks) + 1)
    ]
    assert verdicts[:3] == [None, None, None]
    assert any(v is not None and v.rule == "running" for v in verdicts[3:])
    assert PRUNER.decide_running(incumbent[:6], far_behind, 80, direction="maximize") is None
    mirrored = PRUNER.decide_running(-far_behind[:6], -incumbent, 80, direction="minimize")
    assert mirrored == PRUNER.decide_running(far_behind[:6], incumbent, 80, direction="maximize")


def _rescue(rng: np.random.Generator, rows: int, *, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The incumbent loops on one row in twenty and scores 0; the trial ends that and costs 0.02 elsewhere."""
    loops = rng.random(rows) < 0.05
    incumbent = np.where(loops, 0.0, np.clip(rng.normal(0.5, 0.12, rows), 0.05, 0.95))
    return np.where(loops, 1.0, np.clip(incumbent - 0.02 + noise * rng.normal(size=rows), 0, 1)), incumbent


def _is_pruned(pruner: PairedPruner, trial: np.ndarray, incumbent: np.ndarray, bounds: tuple[float, float]) -> bool:
    rows = len(incumbent)
    looks = pruner.looks(rows)[:-1]
    return any(pruner.decide(trial[:k], incumbent, rows, bounds=bounds, direction="maximize") for k in looks)


@pytest.mark.parametrize("noise", [0.02, 0.05])
@pytest.mark.parametrize("rows", [32, 60, 200])
def test_a_setting_that_ends_rare_loops_is_not_lost(rows: int, noise: float) -> None:
    """By t alone 47 to 50 % of these were stopped before a loop was seen."""
    lost = lost_by_t = better = 0
    for seed in range(150):
        trial, incumbent = _rescue(np.random.default_rng(seed), rows, noise=noise)
        if trial.mean() > incumbent.mean():
            better += 1
            lost += _is_pruned(PRUNER, trial, incumbent, (0, 1))
            lost_by_t += _is_pruned(PairedPruner(knows_failing_rows=False), trial, incumbent, (0, 1))
    assert lost <= 0.05 * better
    assert lost_by_t >= (0.4 if noise == 0.02 else 0.08) * better


def test_minimizing_mirrors_the_failing_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        trial, incumbent = _rescue(rng, 32, noise=0.02)
        up = PRUNER.decide(trial[:8], incumbent, 32, bounds=(0, 1), direction="maximize")
        down = PRUNER.decide(1 - trial[:8], 1 - incumbent, 32, bounds=(0, 1), direction="minimize")
        assert (up is None) == (down is None)


def test_a_trial_that_lifts_none_of_the_failing_rows_is_stopped() -> None:
    rng = np.random.default_rng(1)
    incumbent = np.clip(rng.normal(0.5, 0.12, 100), 0.05, 0.95)
    incumbent[[1, 3, 5, 90]] = 0.0
    trial = np.where(incumbent == 0, 0.0, incumbent - 0.05 + 0.02 * rng.normal(size=100))
    stop = PRUNER.decide(trial[:16], incumbent, 100, bounds=(0, 1), direction="maximize")
    assert stop is not None
    assert stop.rule == "predictive"


def test_rows_that_fail_spare_nine_tenths_of_what_was_spared() -> None:
    """40 trials a study, scores around 0.3 with a standard deviation of 0.16, some near the lower bound."""
    saved = []
    for pruner in (PRUNER, PairedPruner(knows_failing_rows=False)):
        done = 0
        for seed in range(6):
            rng = np.random.default_rng(seed)
            z = 1.5 * rng.normal(size=60) + rng.normal(size=(40, 1)) + rng.normal(size=(40, 60))
            scores = np.clip(0.3 + 0.08 * z, 0, 1)
            done += sum(run_trials(scores, pruner, bounds=(0.0, 1.0), in_flight=1))
        saved.append(1 - done / (6 * 40 * 60))
    assert saved[0] >= 0.9 * saved[1] > 0.5


def test_a_pruner_that_would_misread_running_means_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="one row at every step"):
        make_pruner(optuna.pruners.WilcoxonPruner())
    assert isinstance(make_pruner(optuna.pruners.MedianPruner()), optuna.pruners.MedianPruner)
