"""What the runner finds out about models."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner
from tests.engine.architectures import make


def test_prompts_in_one_pass_are_those_alone(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama)
    prompts = [[5, 9, 30, 41], [7], [8, 60, 3, 90, 120, 33, 7]]
    for prompt, result in zip(prompts, runner.prefill(prompts), strict=True):
        alone = tiny_llama(torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(runner.logits(result.state[None])[0], alone, atol=1e-4)
        assert result.segment.shape[3] == len(prompt)


def test_what_stands_before_is_not_computed_again(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama)
    (prefix,) = runner.prefill([[5, 9, 30]])
    for rest, result in zip([[41], [60, 7]], runner.prefill([[41], [60, 7]], [prefix.segment]), strict=True):
        alone = tiny_llama(torch.tensor([[5, 9, 30, *rest]])).logits[0, -1]
        assert torch.allclose(runner.logits(result.state[None])[0], alone, atol=1e-4)
        assert result.segment.shape[3] == len(rest)


def test_what_is_kept_of_a_row_keeps_nothing_else_in_memory(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama, top=8)
    rows = runner.prefill([[5, 6, 7], [8, 9]])
    for row in rows:
        assert row.segment.untyped_storage().nbytes() == row.segment.nbytes
        assert row.state.untyped_storage().nbytes() == row.state.nbytes


def test_scores_are_the_largest_logits_and_the_total(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama, top=10)
    (result,) = runner.prefill([[5, 9, 30]])
    (scores,) = runner.scores(result.state[None])
    logits = runner.logits(result.state[None])[0]
    assert scores.values.tolist() == sorted(logits.tolist(), reverse=True)[:10]
    assert logits[torch.from_numpy(scores.ids).long()].tolist() == scores.values.tolist()
    assert scores.log_total == pytest.approx(float(torch.logsumexp(logits, 0)))
    assert runner.all_logits([scores])[0] == pytest.approx(logits.numpy(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", "replays from hidden states"),
        ("gemma2", "replays from hidden states"),  # it caps its logits after the head
        ("bloom", "replays from hidden states"),
        ("mamba", "its forward takes no past_key_values"),
    ],
)
def test_capabilities_say_what_was_found(name: str, words: str) -> None:
    assert words in str(ModelRunner(make(name)).capabilities)


@pytest.mark.parametrize("enabled", [True, False])
def test_attention_through_cudnn_is_kept_out_while_decoding_and_then_as_it_was(
    enabled: bool, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    seen: list[bool] = []
    hook = tiny_llama.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        Engine(tiny_llama, tiny_tokenizer).generate(["a"], {"max_new_tokens": 2})
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        hook.remove()
    assert seen
    assert not any(seen)
