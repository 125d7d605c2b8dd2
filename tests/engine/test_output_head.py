"""What comes behind the head: the same bits as the model's own logits, from a few kilobytes a prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from llmsearch_optuna.engine.model_runner import ModelRunner
from tests.engine.architectures import GROUPED, make


def of(make_model: Any, config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make_model(config).float().eval()


FINISHED = {
    "capped": lambda: make("gemma2"),
    "multiplied": lambda: of(hf.CohereForCausalLM, hf.CohereConfig(**GROUPED, logit_scale=0.3)),
    "divided": lambda: of(hf.GraniteForCausalLM, hf.GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "as they are": lambda: make("llama"),
}


@pytest.mark.parametrize("name", FINISHED)
@torch.inference_mode()
def test_logits_of_a_state_are_the_models_own(name: str) -> None:
    model = FINISHED[name]()
    runner = ModelRunner(model)
    ids = torch.tensor([[5, 9, 30, 41]])
    states = runner._states(ids, torch.ones_like(ids), torch.arange(4)[None], None)
    assert runner.capabilities.from_hidden
    assert states.shape == (1, 4, 32)
    assert torch.equal(runner.logits(states[0]), model(ids).logits[0])


@torch.inference_mode()
def test_where_logits_are_made_in_another_way_all_of_them_are_kept() -> None:
    model = make("llama")
    plain = model.forward
    model.forward = lambda *given, **named: _squared(plain(*given, **named))  # type: ignore[method-assign]
    runner = ModelRunner(model)
    runner._choose_body()
    assert not runner._from_hidden
    ids = torch.tensor([[5, 9, 30]])
    states = runner._states(ids, torch.ones_like(ids), torch.arange(3)[None], None)
    assert torch.equal(runner.logits(states[:, -1]), model(ids).logits[:, -1])


def _squared(output: Any) -> Any:
    output.logits = output.logits**2
    return output
