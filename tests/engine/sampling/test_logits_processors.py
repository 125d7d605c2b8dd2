"""Logits processors on a list of candidates, against the same on all scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.sampling.logits_processors import logits_processors_of
from llmsearch_optuna.engine.sampling.row_scores import RowScores
from llmsearch_optuna.engine.sampling.sampler import pick, pick_from_logits
from tests.engine.sampling.rows import (
    KINDS,
    Row,
    contexts,
    make_candidates,
    make_logits,
    make_params,
    ruling,
)


def test_a_cached_set_of_seen_tokens_changes_nothing() -> None:
    logits = make_logits("normal", 1)
    row = Row(make_params(repetition_penalty=1.5), context=[3, 3, 9, *range(20, 60)])
    expected = pick_from_logits(logits, [row])
    for seen in (set(row.context), np.unique(row.context)):
        row.seen = seen  # type: ignore[attr-defined]
        assert pick_from_logits(logits, [row]) == expected
        assert pick(make_candidates(logits, 250), [row]) == expected


def processed(logits: np.ndarray, ids: np.ndarray | None, row: Row) -> RowScores:
    """Scores ``[tokens]`` after all processors: of the whole vocabulary, or of the tokens ``ids``."""
    places = None if ids is None else np.zeros(len(logits), dtype=np.int64)
    row_scores = RowScores(logits.copy() if ids is None else logits[ids], None if ids is None else ids.copy(), places)
    for processor in logits_processors_of(row.params):
        processor(row_scores, row)
    return row_scores


@given(
    values=ruling, context=contexts(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), size=st.integers(4, 200)
)
def test_a_list_of_candidates_gets_the_scores_of_the_whole_vocabulary(
    values: dict[str, Any], context: dict[str, Any], kind: str, seed: int, size: int
) -> None:
    (logits,) = make_logits(kind, seed)
    row = Row(make_params(**values), **context)
    ids = np.argsort(-logits, kind="stable")[:size]
    whole, listed = processed(logits, None, row), processed(logits, ids, row)
    assert listed.ids is not None
    possible = listed.ids >= 0
    assert np.array_equal(listed.scores[possible], whole.scores[listed.ids[possible]])
    outside = np.setdiff1d(np.arange(len(logits)), listed.ids)
    if listed.forced:
        assert np.all(whole.scores[outside] == -np.inf)
    elif not listed.raised:
        assert np.all(whole.scores[outside] <= logits[outside])
        assert np.count_nonzero(whole.scores[outside] < logits[outside]) <= listed.lowered


def test_without_parameters_there_are_no_processors() -> None:
    assert logits_processors_of(make_params(do_sample=True, temperature=0.3, top_k=5)) == ()
