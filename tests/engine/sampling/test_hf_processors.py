"""Tail-free, top-a and top-n-sigma as their sources define them, and with plain ``model.generate``."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from llmsearch_optuna.engine.sampling import hf_processors, params, stop
from llmsearch_optuna.engine.sampling.hf_processors import (
    TailFreeLogitsWarper,
    TopALogitsWarper,
    TopNSigmaLogitsWarper,
    own_processors,
)
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.errors import InputError


@pytest.mark.parametrize("module", [hf_processors, params, stop])
def test_worked_examples(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


def tail_free_by_hand(probabilities: list[float], z: float) -> list[bool]:
    """Bricken's definition, token by token, of sorted probabilities."""
    slopes = [a - b for a, b in itertools.pairwise(probabilities)]
    bends = [abs(a - b) for a, b in itertools.pairwise(slopes)]
    kept, held = [True], 0.0
    for bend in bends:
        held += bend / sum(bends)
        kept.append(held <= z)
    return [*kept, False]


@pytest.mark.parametrize("z", [0.05, 0.5, 0.9, 0.99])
def test_tail_free(z: float) -> None:
    p = np.random.default_rng(1).dirichlet(np.full(40, 0.3))
    kept = torch.isfinite(TailFreeLogitsWarper(z)(None, torch.from_numpy(np.log(p))[None]))[0].numpy()
    order = np.argsort(-p)
    assert kept[order].tolist() == tail_free_by_hand(p[order].tolist(), z)


def test_rows_are_independent() -> None:
    scores = torch.randn(5, 60, generator=torch.Generator().manual_seed(0)) * 4
    for warper in (TailFreeLogitsWarper(0.9), TopALogitsWarper(0.3), TopNSigmaLogitsWarper(1.2)):
        together = warper(None, scores)
        assert torch.equal(together, torch.cat([warper(None, row[None]) for row in scores]))
        assert (together == scores).any(dim=-1).all()
        assert torch.isinf(together).any()


def test_flat_scores_keep_everything() -> None:
    scores = torch.zeros(2, 9)
    for warper in (TailFreeLogitsWarper(0.5), TopALogitsWarper(1.0), TopNSigmaLogitsWarper(0.1)):
        assert torch.equal(warper(None, scores), scores)


def test_switched_off() -> None:
    scores = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TailFreeLogitsWarper(1.0)(None, scores), scores)
    assert torch.equal(TopALogitsWarper(0.0)(None, scores), scores)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(InputError, match="tfs=0"):
        TailFreeLogitsWarper(0)
    with pytest.raises(InputError, match="top_a=2"):
        TopALogitsWarper(2)
    with pytest.raises(InputError, match="top_n_sigma=-1"):
        TopNSigmaLogitsWarper(-1)


def test_with_plain_generate(tiny_llama: LlamaForCausalLM) -> None:
    """So strong a truncation leaves the greedy token only."""
    prompt = torch.tensor([[5, 9, 40]])
    greedy = tiny_llama.generate(prompt, max_new_tokens=8, do_sample=False)
    for own in ({"top_n_sigma": 1e-6}, {"tfs": 1e-9}, {"top_a": 1.0, "top_n_sigma": 0.01}):
        values = GenerationParams.of({"max_new_tokens": 8, "do_sample": True, "top_k": 0, **own})
        found = tiny_llama.generate(
            prompt, logits_processor=own_processors(values), **values.to_hugging_face(model_defaults(tiny_llama))
        )
        assert torch.equal(found, greedy), own


def test_only_where_something_is_sampled() -> None:
    assert not own_processors(GenerationParams.of({"max_new_tokens": 8, "tfs": 0.9}))
    values = GenerationParams.of({"max_new_tokens": 8, "do_sample": True, "tfs": 0.9, "top_a": 0.1})
    assert [type(p) for p in own_processors(values)] == [TailFreeLogitsWarper, TopALogitsWarper]
