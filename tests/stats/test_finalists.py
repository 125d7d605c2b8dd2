"""Finalists: who is scored again, who wins, and that luck is taken out of the winner's score."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.finalists import Selection, choose_finalists, pick_winner, split_variance


def test_the_best_three_join_baseline_and_greedy() -> None:
    values = {0: 0.5, 1: 0.4, 2: 0.9, 3: 0.1, 5: 0.7, 6: 0.8}
    assert choose_finalists(values, direction="maximize", always=(0, 1)) == (0, 1, 2, 6, 5)
    assert choose_finalists(values, direction="minimize", always=(0, 1)) == (0, 1, 3, 5, 6)
    assert choose_finalists(values, direction="maximize", always=(0,), k=1) == (0, 2)


def test_the_baseline_takes_no_place_of_the_best_and_missing_ones_none() -> None:
    values = {0: 0.9, 2: 0.5, 3: 0.5, 4: 0.3, 7: 0.2}
    assert choose_finalists(values, direction="maximize", always=(0, 1)) == (0, 2, 3, 4)
    assert choose_finalists({}, direction="maximize", always=(0, 1)) == ()


def test_a_clear_winner_wins_and_keeps_its_mean() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 1))
    scores = {n: rows + gain + 0.1 * rng.normal(size=(100, 2)) for n, gain in ((0, 0.0), (1, 0.05), (8, 0.5), (9, 0.1))}
    chosen = pick_winner(scores, direction="maximize")
    assert chosen.winner == 8
    assert chosen.score == pytest.approx(chosen.finalists[0].mean, abs=0.005)
    assert chosen.finalists[0].error < 0.02  # what rows do to all of them is taken out …
    assert chosen.standard_error > 0.07  # … but not out of the error of the score itself
    assert pick_winner({n: -s for n, s in scores.items()}, direction="minimize").winner == 8


def test_equal_finalists_shrink_towards_one_mean() -> None:
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(100):
        rows = rng.normal(size=(40, 1))
        chosen = pick_winner({n: rows + rng.normal(size=(40, 1)) for n in range(5)}, direction="maximize")
        means = [f.mean for f in chosen.finalists]
        kept.append((chosen.score - np.mean(means)) / (max(means) - np.mean(means)))
    assert np.mean(kept) < 0.6


def test_the_winners_score_is_not_the_lucky_maximum() -> None:
    """Over many studies the raw maximum flatters; the shrunken score is far closer to the truth."""
    rng = np.random.default_rng(2)
    raw, shrunken = [], []
    for _ in range(300):
        truth = 0.1 * rng.normal(size=5)
        rows = rng.normal(size=(1, 30))
        scores = rows - rows.mean() + truth[:, None] + 0.8 * rng.normal(size=(5, 30))
        chosen = pick_winner(dict(enumerate(scores)), direction="maximize")
        raw.append(scores.mean(axis=1).max() - truth[scores.mean(axis=1).argmax()])
        shrunken.append(chosen.score - truth[chosen.winner])
    assert np.mean(raw) > 0.1
    assert abs(np.mean(shrunken)) < 0.5 * np.mean(raw)


def test_a_noisy_finalist_needs_a_longer_lead_than_a_steady_one() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=60)

    def around(mean: float, noise: float) -> NDArray[np.float64]:
        drawn = rng.normal(size=60)
        return np.asarray(rows + mean + noise * (drawn - drawn.mean()))

    scores = {0: around(0.0, 0.05), 1: around(0.02, 0.05), 2: around(0.10, 0.05), 3: around(0.11, 4.0)}
    chosen = pick_winner(scores, direction="maximize")
    assert max(chosen.finalists, key=lambda f: f.mean).number == 3
    assert chosen.winner == 2


def test_ties_go_to_the_baseline_and_then_to_the_earlier_trial() -> None:
    same = np.random.default_rng(4).random(20)
    assert pick_winner({7: same, 3: same, 0: same}, direction="maximize").winner == 0
    assert pick_winner({7: same, 3: same}, direction="maximize").winner == 3
    assert pick_winner({7: same, 3: same}, direction="maximize", baseline=7).winner == 7


def test_a_choice_survives_json_and_odd_sizes() -> None:
    rng = np.random.default_rng(5)
    chosen = pick_winner({0: rng.random((8, 3)), 4: rng.random(8)}, direction="maximize")
    assert Selection.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert pick_winner({0: [0.3, 0.4]}, direction="maximize").winner == 0
    assert pick_winner({0: [0.3], 1: [0.4]}, direction="maximize").winner == 1


def test_finalists_must_share_their_rows() -> None:
    with pytest.raises(InputError, match="rows"):
        pick_winner({0: [0.1, 0.2], 1: [0.3]}, direction="maximize")
    with pytest.raises(InputError, match="no finalist"):
        pick_winner({}, direction="maximize")
    with pytest.raises(InputError, match="finite"):
        pick_winner({0: [float("nan")]}, direction="maximize")


def test_the_variance_split_finds_what_was_put_in() -> None:
    rng = np.random.default_rng(6)
    scores = 2.0 * rng.normal(size=(4000, 1)) + 1.0 * rng.normal(size=(4000, 3))
    split = split_variance(scores)
    assert split.rows_variance == pytest.approx(4, rel=0.1)
    assert split.sampling_variance == pytest.approx(1, rel=0.1)
    assert split.sampling_share == pytest.approx(0.2, abs=0.02)
    assert split.standard_error(100, 3) == pytest.approx(np.sqrt((4 + 1 / 3) / 100), rel=0.05)
    assert "more replicates hardly do" in split.advice


def test_the_advice_follows_the_split() -> None:
    rng = np.random.default_rng(7)
    noisy = split_variance(0.1 * rng.normal(size=(50, 1)) + rng.normal(size=(50, 2)))
    assert "more replicates help as well" in noisy.advice
    single = split_variance(rng.random(50))
    assert single.sampling_share is None
    assert "cannot be told apart" in single.advice
    assert split_variance(np.ones((5, 2))).advice == "All scores are alike."
