"""The largest logits against torch's own search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine import largest_logits as module
from llmsearch_optuna.engine.largest_logits import largest_logits
from tests.engine.sampling.rows import KINDS, make_logits


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(1, 300), st.integers(0, 299))
def test_they_are_what_torch_finds(kind: str, seed: int, count: int, banned: int) -> None:
    logits = torch.from_numpy(make_logits(kind, seed, 3))
    logits[1, :banned] = -torch.inf
    values, ids, totals = largest_logits(logits, count)
    assert torch.equal(values, torch.topk(logits, count, dim=-1).values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == count for row in ids.tolist())
    assert torch.allclose(totals, torch.logsumexp(logits, dim=-1), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_numbers_leaves_the_others_alone(bad: float) -> None:
    logits = torch.from_numpy(make_logits("normal", 1, 2))
    logits[1, 7] = bad
    values, _, totals = largest_logits(logits, 5)
    assert torch.equal(values[0], torch.topk(logits[0], 5).values)
    assert totals.isfinite().tolist() == [True, False]


def test_many_threads_search_together(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.from_numpy(make_logits("normal", 1, 2))
    alone = largest_logits(logits, 9)
    monkeypatch.setattr(module, "FEW_THREADS", 0)
    together = largest_logits(logits, 9)
    assert all(torch.equal(a, b) for a, b in zip(alone[:2], together[:2], strict=True))
