"""Comparisons under a metric that scores all rows at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.corpus_comparison import compare_corpus
from llmsearch_optuna.stats.verdict import Verdict


def _share_of_hits(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """A ratio of sums, as BLEU is: long predictions weigh more."""
    hits = sum(p.split().count(r) for p, r in zip(predictions, references, strict=True))
    return hits / max(1, sum(len(p.split()) for p in predictions))


def test_corpus_metrics_are_recomputed_on_swapped_and_resampled_rows() -> None:
    rng = np.random.default_rng(11)
    worse, better = _texts(rng, 40, 0.3), _texts(rng, 40, 0.6)
    references = ["x"] * 40
    verdict = compare_corpus(_share_of_hits, worse, better, references=references, permutations=199, resamples=100)
    assert verdict.answer == "better"
    assert verdict.difference == pytest.approx(0.3, abs=0.1)
    assert verdict.wins is None
    assert verdict.replicates == 2
    again = compare_corpus(_share_of_hits, worse, better, references=references, permutations=199, resamples=100)
    assert again == verdict
    down = compare_corpus(
        _share_of_hits, worse, better, references=references, direction="minimize", permutations=199, resamples=100
    )
    assert down.answer == "worse"
    assert down.difference == pytest.approx(verdict.difference)


def test_equal_corpora_are_no_evidence() -> None:
    same = [["x y"]] * 25
    verdict = compare_corpus(_share_of_hits, same, same, references=["x"] * 25, permutations=99, resamples=50)
    assert (verdict.answer, verdict.p_value) == ("no evidence", 1.0)
    with pytest.raises(InputError):
        compare_corpus(_share_of_hits, same, same[:3], references=["x"] * 25)


def test_the_same_completions_are_not_worse_than_a_margin() -> None:
    same, references = [["x y"]] * 25, ["x"] * 25
    verdict = compare_corpus(
        _share_of_hits, same, same, references=references, bounds=(0, 1), margin=0.1, permutations=99
    )
    assert verdict.answer == "not worse than margin"
    assert verdict.margin_p_value == pytest.approx((1 - 0.1 / 0.5) ** 25, rel=1e-3)
    few = compare_corpus(
        _share_of_hits, same[:6], same[:6], references=references[:6], bounds=(0, 1), margin=0.1, permutations=99
    )
    assert few.answer == "no evidence"
    unbounded = compare_corpus(_share_of_hits, same, same, references=references, margin=0.1, permutations=99)
    assert (unbounded.answer, unbounded.interval) == ("no evidence", (-math.inf, math.inf))


def test_a_corpus_metric_that_cannot_be_computed_on_what_is_drawn_leaves_the_interval_open() -> None:
    rng = np.random.default_rng(13)
    worse, better = _texts(rng, 40, 0.3), _texts(rng, 40, 0.6)

    def broken(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float:
        known = [[row[0] for row in worse], [row[0] for row in better], [row[1] for row in worse]]
        if list(predictions) in [*known, [row[1] for row in better]]:
            return _share_of_hits(predictions, references, rows)
        return math.nan

    verdict = compare_corpus(broken, worse, better, references=["x"] * 40, permutations=99, resamples=50)
    assert verdict.answer == "no evidence"
    assert verdict.interval == (-math.inf, math.inf)
    assert verdict.p_value == 1.0


def test_held_out_rows_that_could_not_be_scored_are_told() -> None:
    scores = np.random.default_rng(4).random((12, 2))
    plain, fewer = compare(scores, scores + 0.1), compare(scores, scores + 0.1, unscored=3)
    assert "could not be scored" not in plain.sentence
    assert "3 of 15 held-out rows could not be scored and do not count" in fewer.sentence
    assert (fewer.rows, fewer.unscored) == (12, 3)
    earlier = {name: value for name, value in plain.to_json().items() if name != "unscored"}
    assert Verdict.from_json(earlier) == plain
    texts = [["x"], ["y"]] * 6
    corpus = compare_corpus(
        _share_of_hits, texts, texts, references=["x"] * 12, unscored=1, permutations=9, resamples=9
    )
    assert "1 of 13 held-out rows" in corpus.sentence


def _texts(rng: np.random.Generator, rows: int, chance: float) -> list[list[str]]:
    return [
        [" ".join(rng.choice(["x", "y"], p=[chance, 1 - chance], size=rng.integers(2, 12))) for _ in range(2)]
        for _ in range(rows)
    ]
