"""Drawing from sorted scores, against the same by plain sorting and by looking at all noise."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.sampling.draw import RowNoise, draw, in_order
from llmsearch_optuna.engine.sampling.gumbel import gumbel
from llmsearch_optuna.engine.sampling.settings import settings_of
from tests.engine.sampling.rows import KINDS, VOCABULARY, make_logits, make_params


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 99), rows=st.integers(1, 4))
def test_scores_descend_and_equal_ones_have_descending_ids(kind: str, seed: int, rows: int) -> None:
    logits = make_logits(kind, seed, rows)
    ids = np.stack([np.random.default_rng(seed + row).permutation(VOCABULARY) for row in range(rows)])
    expected = [np.lexsort((-ids[row], -logits[row])) for row in range(rows)]
    scores, ordered = in_order(logits.copy(), ids.copy())
    for row, order in enumerate(expected):
        assert np.array_equal(scores[row], logits[row][order])
        assert np.array_equal(ordered[row], ids[row][order])


@given(seed=st.integers(0, 99), step=st.integers(0, 9), limit=st.floats(-1, 40), known=st.integers(0, VOCABULARY))
def test_noise_that_is_called_small_is_small(seed: int, step: int, limit: float, known: int) -> None:
    noise = RowNoise([seed], [17], [step])
    ids = np.random.default_rng(seed).permutation(VOCABULARY)[:known]
    others = np.setdiff1d(np.arange(VOCABULARY), ids)
    values = gumbel(seed, [17], [step], np.arange(VOCABULARY)[None])[0]
    largest = values[others].max() if len(others) else -np.inf
    if noise.is_below(limit, 0, ids, VOCABULARY):
        assert largest < limit
    elif known == 0 and limit > 6:  # few enough are expected above it that it was looked at
        assert largest >= limit


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 99), size=st.integers(1, VOCABULARY))
def test_a_list_gives_the_token_of_the_whole_vocabulary_or_none(kind: str, seed: int, size: int) -> None:
    (logits,) = make_logits(kind, seed)
    noise = RowNoise([seed], [5], [2])
    noisy = logits.astype(np.float64) + gumbel(seed, [5], [2], np.arange(VOCABULARY)[None])[0]
    scores, ids = in_order(logits[None].copy(), np.arange(VOCABULARY)[None].copy())
    listed, outside = scores[:, :size].astype(np.float64), scores[0, size:].astype(np.float64)
    bound = np.array([outside.max() if len(outside) else -np.inf])
    tail = np.array([np.logaddexp.reduce(outside) if len(outside) else -np.inf])
    found = draw(
        listed,
        ids[:, :size],
        bound,
        tail,
        tail,
        VOCABULARY,
        noise,
        [settings_of(make_params(do_sample=True, top_k=0, generation_seed=seed))],
    )
    assert found[0] in (-1, int(np.argmax(noisy)))
    if size == VOCABULARY:
        assert found[0] == int(np.argmax(noisy))
