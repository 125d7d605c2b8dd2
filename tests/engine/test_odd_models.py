"""Models that are not as usual: in training mode, with odd defaults, in half precision, with rescaled positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from tests.engine.architectures import GROUPED, make
from tests.oracle import hf_generate

PROMPTS = (
    "The quick brown fox jumps over the lazy dog",
    "Anna asks Ben whether the train",
    "T",
    "Thank you very much! You are welcome; see you tomorrow, or on 30 May",
    "How many apples",
)


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in completions]


def alone(model: Any, tokenizer: PreTrainedTokenizerFast, **params: Any) -> list[list[int]]:
    return [hf_generate(model, tokenizer(prompt).input_ids, **params) for prompt in PROMPTS]


# ---- training mode and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"num_beams": 2}, {"guidance_scale": 1.5}], ids=str)
def test_a_model_in_training_is_evaluated_and_put_back(
    params: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make("gpt2")  # its dropout is 0.1
    expected = alone(model, tiny_tokenizer, max_new_tokens=8, **params)
    model.train()
    model.transformer.h[0].eval()  # a part that is frozen stays so
    before = {name: module.training for name, module in model.named_modules()}
    with torch.enable_grad():
        engine = Engine(model, tiny_tokenizer, batch_size=3)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert tokens_of(engine.generate(PROMPTS, {"max_new_tokens": 8, **params})) == expected
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for tree in engine._cache.trees.values():
        assert tree.root.scores is None or not tree.root.scores.state.requires_grad
        assert tree.prompt_block is None or not tree.prompt_block.segment.requires_grad


# ---- the model's own generation configuration -----------------------------------------------------------------------

ODD_DEFAULTS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.3, "top_p": 0.5, "do_sample": False},
    {"forced_eos_token_id": 1, "suppress_tokens": list(range(4, 199, 3)), "begin_suppress_tokens": [5, 6, 7, 8]},
    {"num_beams": 3, "length_penalty": 0.2, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.5, "min_new_tokens": 6, "eos_token_id": list(range(1, 199, 5))},
    {"min_length": 12, "eos_token_id": list(range(1, 199, 5)), "exponential_decay_length_penalty": (3, 1.5)},
    {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None},
    {"pad_token_id": 1, "max_length": 20, "bad_words_ids": [[n] for n in range(4, 199, 2)]},
    {"sequence_bias": [[[40], 6.0], [[50, 51], -3.0]], "remove_invalid_values": True, "renormalize_logits": True},
)


@pytest.mark.parametrize("defaults", ODD_DEFAULTS, ids=str)
def test_the_baseline_is_plain_generate(
    defaults: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = copy.copy(tiny_llama)
    model.generation_config = copy.deepcopy(tiny_llama.generation_config)
    model.generation_config.update(**defaults)
    engine = Engine(model, tiny_tokenizer, batch_size=3)
    found = tokens_of(engine.generate(PROMPTS, {"max_new_tokens": 9}))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tiny_tokenizer(prompt).input_ids])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9)
        assert tokens == output[0, ids.shape[1] :].tolist()
    assert model.generation_config.to_dict() | defaults == model.generation_config.to_dict()


# ---- shapes and precision -------------------------------------------------------------------------------------------


def test_a_vocabulary_beyond_the_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Padded vocabularies are usual; the tokens that no tokenizer knows decode to nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, "vocab_size": 400}, tie_word_embeddings=True)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[250:].mul_(6.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    engine = Engine(model, tiny_tokenizer, batch_size=4)
    completions = engine.generate(PROMPTS, {"max_new_tokens": 8})
    assert tokens_of(completions) == alone(model, tiny_tokenizer, max_new_tokens=8)
    strange = [c for c in completions if any(token >= len(tiny_tokenizer) for token in c.token_ids)]
    assert strange, "the case is not here"
    for completion in strange:
        known = [token for token in completion.token_ids if token < len(tiny_tokenizer)]
        assert completion.text == tiny_tokenizer.decode(known, skip_special_tokens=True)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"num_beams": 3, "repetition_penalty": 0.8},
        {"do_sample": True, "top_k": 0, "temperature": 2.0},
        {"do_sample": True, "top_k": 0, "tfs": 0.9},
    ],
    ids=str,
)
def test_half_precision_agrees_with_itself(params: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Other batches change its last bits (how many tokens that is, a benchmark measures); what is known does not."""
    model = make("llama").to(torch.bfloat16)
    engine = Engine(model, tiny_tokenizer, batch_size=3)
    values = {"max_new_tokens": 10, **params}
    first = engine.generate(PROMPTS, values)
    forwards = engine.stats.forward_tokens
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[:2]):
        again = engine.generate(prompts, values)
        assert [c.token_ids for c in again] == [first[PROMPTS.index(prompt)].token_ids for prompt in prompts]
    assert engine.stats.forward_tokens == forwards


# ---- positions that depend on the length of a text ------------------------------------------------------------------


def longrope() -> hf.Phi3ForCausalLM:
    """Phi 3's 128k models in small: another set of frequencies for all rows once the longest has 25 tokens."""
    factors = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 3.0, 5.0, 8.0]}
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24, "factor": 256 / 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = hf.Phi3Config(**GROUPED, original_max_position_embeddings=24, rope_parameters={**scaling, **factors})
        model = hf.Phi3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 0.15)
    return model.eval()


def test_rows_that_would_rescale_the_positions_of_others_go_alone(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = longrope()
    engine = Engine(model, tiny_tokenizer, batch_size=8)
    assert "rows of up to 24 tokens one by one" in engine.capabilities
    lengths = [len(tiny_tokenizer(prompt).input_ids) for prompt in PROMPTS]
    assert min(lengths) + 10 <= 24 < max(lengths), "both kinds are here"
    for params in ({"max_new_tokens": 10}, {"max_new_tokens": 6, "num_beams": 3}):
        assert tokens_of(engine.generate(PROMPTS, params)) == alone(model, tiny_tokenizer, **params)
    assert 0 < engine.stats.plain_requests < 2 * len(PROMPTS)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "falcon-alibi", "gemma3-sliding"])
def test_other_positions_set_no_limit(architecture: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert "rows of up to" not in Engine(make(architecture), tiny_tokenizer).capabilities


# ---- decoders that begin elsewhere, states that cannot be cut -------------------------------------------------------


def test_another_start_token_than_the_models(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("t5")
    engine = Engine(model, tiny_tokenizer, batch_size=3)
    usual = tokens_of(engine.generate(PROMPTS, {"max_new_tokens": 8}))
    for start in (2, 7, [7]):
        params = {"max_new_tokens": 8, "decoder_start_token_id": start}
        found = tokens_of(engine.generate(PROMPTS, params))
        first = start[0] if isinstance(start, list) else start
        assert found == alone(model, tiny_tokenizer, max_new_tokens=8, decoder_start_token_id=first)
        assert (found == usual) == (first == 2)


def test_hybrids_say_what_their_cache_keeps(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_ff_dim=64)
        model = hf.Lfm2ForCausalLM(config).eval()
    engine = Engine(model, tiny_tokenizer, batch_size=3)
    assert "its cache keeps a LinearAttentionLayer, whose state cannot be cut by position" in engine.capabilities
    assert tokens_of(engine.generate(PROMPTS, {"max_new_tokens": 6})) == alone(model, tiny_tokenizer, max_new_tokens=6)


def test_top_is_a_number_from_one_on(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="top is 0"):
        Engine(tiny_llama, tiny_tokenizer, top=0)
