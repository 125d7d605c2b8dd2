"""Influences: one value a prompt for scores of many rows, held against means, truth and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmsearch_optuna.metrics.text_scores import corpus_bleu
from llmsearch_optuna.stats.finalists import pick_winner
from llmsearch_optuna.stats.jackknife import influences

Score = Callable[[Sequence[int]], float]


def _mean_of(values: NDArray[np.float64]) -> Score:
    return lambda places: float(np.mean(values[list(places)]))


def _ratio_of(hits: NDArray[np.float64], sizes: NDArray[np.float64]) -> Score:
    """A ratio of sums, as BLEU is."""
    return lambda places: float(hits[list(places)].sum() / sizes[list(places)].sum())


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50))
def test_a_mean_has_its_own_rows_as_influences(scores: list[float]) -> None:
    values = np.array(scores)
    assert influences(_mean_of(values), np.arange(len(values))) == pytest.approx(values, abs=1e-8)


@given(st.integers(1, 400), st.integers(2, 60), st.integers(0, 9))
def test_their_mean_is_the_score_whatever_is_left_out_together(prompts: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(prompts), rng.integers(0, prompts, 20)])
    score = _ratio_of(rng.random(len(labels)), 1 + rng.random(len(labels)))
    found = influences(score, labels, most_groups=groups)
    assert len(found) == prompts
    assert found.mean() == pytest.approx(score(range(len(labels))))


@pytest.mark.parametrize(("rows", "repeats"), [(40, 1), (203, 1), (40, 3)])
def test_the_standard_error_is_the_spread_over_fresh_rows(rows: int, repeats: int) -> None:
    """Rows of one prompt stand and fall together; 203 rows go in 50 groups of 4 and 5."""
    rng = np.random.default_rng(7)
    scores, errors = [], []
    for _ in range(400):
        sizes = rng.integers(2, 30, rows).astype(float)
        hits = rng.binomial(sizes.astype(int), rng.beta(2, 2, rows)).astype(float)
        score = _ratio_of(np.repeat(hits, repeats), np.repeat(sizes, repeats))
        found = influences(score, np.repeat(np.arange(rows), repeats))
        scores.append(found.mean())
        errors.append(found.std(ddof=1) / math.sqrt(rows))
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.1)


def test_the_error_of_bleu_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    words = [f"w{n}" for n in range(12)]
    references = [[" ".join(rng.choice(words, rng.integers(6, 20)))] for _ in range(60)]
    predictions = [
        " ".join(w if rng.random() < 0.8 else str(rng.choice(words)) for w in text.split()) for (text,) in references
    ]

    def score(places: Sequence[int]) -> float:
        return corpus_bleu([predictions[p] for p in places], [references[p] for p in places])

    found = influences(score, np.arange(60))
    drawn = [score(rng.integers(0, 60, 60).tolist()) for _ in range(400)]
    assert found.mean() == pytest.approx(score(range(60)))
    assert found.std(ddof=1) / math.sqrt(60) == pytest.approx(np.std(drawn, ddof=1), rel=0.2)


def test_finalists_are_chosen_by_them_as_by_scores() -> None:
    rng = np.random.default_rng(5)
    scores = {number: rng.random(40) + 0.1 * number for number in (0, 1, 4)}
    told = {number: influences(_mean_of(values), np.arange(40)) for number, values in scores.items()}
    by_influence, by_score = pick_winner(told, direction="maximize"), pick_winner(scores, direction="maximize")
    assert by_influence.winner == by_score.winner
    for one, other in zip(by_influence.finalists, by_score.finalists, strict=True):
        assert (one.shrunken, one.error, one.standard_error) == pytest.approx(
            (other.shrunken, other.error, other.standard_error)
        )
