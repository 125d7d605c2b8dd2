"""Penalties on the device against the processors of one row, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine.sampling.device_penalties import DevicePenalties, can_process
from llmsearch_optuna.engine.sampling.row_scores import RowScores
from llmsearch_optuna.engine.sampling.settings import settings_of
from tests.engine.sampling.rows import VOCABULARY, Row, contexts, make_logits, make_params, tokens

CPU = torch.device("cpu")

penalties = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.05, 1.3, 3.0]),
        "presence_penalty": st.sampled_from([0.3, 2.0]),
        "frequency_penalty": st.sampled_from([0.2, 1.7]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "min_new_tokens": st.integers(1, 12),
        "min_length": st.integers(1, 12),
        "suppress_tokens": st.lists(tokens, min_size=1, max_size=4, unique=True),
        "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=4, unique=True),
    },
)


def by_row(row: Row, scores: np.ndarray, ids: np.ndarray | None) -> RowScores:
    places = None if ids is None else np.zeros(VOCABULARY, dtype=np.int64)
    found = RowScores(scores.copy(), None if ids is None else ids.copy(), places)
    for processor in settings_of(row.params).processors:
        processor(found, row)
    return found


@settings(max_examples=30)
@given(
    st.lists(st.tuples(penalties, contexts()), min_size=1, max_size=6),
    st.sampled_from(["peaked", "tied", "model"]),
    st.integers(0, 10**6),
    st.integers(1, VOCABULARY),
)
def test_scores_are_those_of_the_processors_of_each_row(
    given_rows: list[tuple[dict[str, Any], dict[str, Any]]], kind: str, seed: int, width: int
) -> None:
    rows = [Row(make_params(**params), **context) for params, context in given_rows]
    of_rows = [settings_of(row.params) for row in rows]
    assert all(map(can_process, of_rows))
    logits = torch.from_numpy(make_logits(kind, seed, len(rows)))
    found = DevicePenalties.of(rows, of_rows, CPU)
    if found is None:
        assert not any(row_settings.processors for row_settings in of_rows)
        return
    top = torch.topk(logits, width, dim=-1)
    scores, lowered = found.apply(top.values, top.indices)
    everything, none_left = found.apply(logits, torch.arange(VOCABULARY).expand(len(rows), -1))
    assert not none_left.any()
    for place, row in enumerate(rows):
        listed = by_row(row, top.values[place].numpy(), top.indices[place].numpy())
        assert scores[place].numpy().tobytes() == listed.scores.tobytes()
        whole = by_row(row, logits[place].numpy(), None).scores
        assert everything[place].numpy().tobytes() == whole.tobytes()
        outside = np.delete(whole < logits[place].numpy(), top.indices[place].numpy())
        # the processors count a token for each of them that lowers it
        assert np.count_nonzero(outside) <= int(lowered[place]) <= listed.lowered
    if len(rows) > 1:
        part, _ = found.take(torch.tensor([1])).apply(top.values[1:2], top.indices[1:2])
        assert torch.equal(part[0], scores[1])


def test_an_array_that_is_kept_up_to_date_is_used_up_to_the_context() -> None:
    params = make_params(repetition_penalty=2.0)
    one, other = Row(params, [5, 9]), Row(params, [5, 9])
    other.tokens = np.array([5, 9, 7, 7], dtype=np.int32)  # type: ignore[attr-defined]
    found = DevicePenalties.of([one, other], [settings_of(params)] * 2, CPU)
    assert found is not None
    scores, _ = found.apply(torch.ones(2, 10), torch.arange(10).expand(2, -1))
    assert scores.tolist() == [[0.5 if token in (5, 9) else 1.0 for token in range(10)]] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the host")
def test_a_cuda_device_gives_the_same_bits() -> None:
    params = make_params(repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.7, min_new_tokens=9)
    generator = np.random.default_rng(1)
    rows = [Row(params, generator.integers(0, VOCABULARY, 40).tolist(), prompt_length=30) for _ in range(64)]
    logits = torch.from_numpy(make_logits("model", 4, len(rows)))
    ids = torch.arange(VOCABULARY).expand(len(rows), -1)
    host, card = (DevicePenalties.of(rows, [settings_of(params)] * len(rows), torch.device(d)) for d in ("cpu", "cuda"))
    assert host is not None
    assert card is not None
    assert torch.equal(card.apply(logits.cuda(), ids.cuda())[0].cpu(), host.apply(logits, ids)[0])
