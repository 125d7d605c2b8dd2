"""The plain path: every row as if it were alone, nothing from the model's own configuration, no global randomness."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llmsearch_optuna.engine.hf_generate import generate_plain, refuse_reason
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.errors import DecodingError
from tests.oracle import hf_generate

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
PROMPTS = [[5, 9, 33], [7, 1, 8, 100, 44], [60, 61, 62], [198], [7, 1, 8, 101, 44]]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.25)
    return model.eval()


def make(name: str) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if name == "gpt2":
            config = GPT2Config(vocab_size=199, n_embd=32, n_layer=2, n_head=4, **IDS)
            return randomised(GPT2LMHeadModel(config))
        if name == "mamba":
            config = MambaConfig(vocab_size=199, hidden_size=32, num_hidden_layers=2, state_size=4, **IDS)
            return randomised(MambaForCausalLM(config))
        if name == "t5":
            sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
            ids = {"decoder_start_token_id": 2, "eos_token_id": 1, "pad_token_id": 2}
            return randomised(T5ForConditionalGeneration(T5Config(vocab_size=199, **sizes, **ids)))
        sizes = {"d_model": 32, "max_position_embeddings": 128}
        for part in ("encoder", "decoder"):
            sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 48}
        ids = {**IDS, "decoder_start_token_id": 1, "forced_eos_token_id": None}
        return randomised(BartForConditionalGeneration(BartConfig(vocab_size=199, **sizes, **ids)))


MODELS = {name: make(name) for name in ("gpt2", "t5", "bart", "mamba")}


@pytest.fixture(params=["llama", *MODELS])
def model(request, tiny_llama):
    return tiny_llama if request.param == "llama" else MODELS[request.param]


def plain(model, tokenizer, values, prompts=PROMPTS, keys=None):
    params = GenerationParams.of({"max_new_tokens": 9, **values}, model_defaults(model))
    return generate_plain(model, tokenizer, prompts, params, keys or list(range(len(prompts))))


DETERMINISTIC = [
    {},
    {"min_length": 7, "repetition_penalty": 1.4, "exponential_decay_length_penalty": (2, 1.6)},
    {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 1},
    {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "eos_token_id": [1, 7, 20]},
    {"forced_eos_token_id": 1, "suppress_tokens": list(range(10, 60)), "eos_token_id": list(range(60, 90))},
]


@pytest.mark.parametrize("values", DETERMINISTIC)
def test_each_row_is_as_if_alone(model, tiny_tokenizer, values):
    results = plain(model, tiny_tokenizer, values)
    for prompt, (tokens, reason, text) in zip(PROMPTS, results, strict=True):
        assert list(tokens) == hf_generate(model, prompt, **{"max_new_tokens": 9, **values})
        ends = values.get("eos_token_id", [1])
        assert reason == ("eos" if tokens[-1] in ends else "length")
        assert text == tiny_tokenizer.decode(tokens, skip_special_tokens=True)


def test_rows_of_one_length_share_a_call(model, tiny_tokenizer, monkeypatch):
    calls = []
    original = model.generate

    def counting(**kwargs):
        calls.append(len(kwargs["input_ids"]))
        return original(**kwargs)

    monkeypatch.setattr(model, "generate", counting)
    plain(model, tiny_tokenizer, {})
    # The lengths are 1, 3 (twice) and 5 (twice); encoders may be padded once that is seen to be harmless.
    assert calls == ([5] if model.config.is_encoder_decoder else [1, 2, 2])


def test_the_models_own_configuration_does_not_leak(model, tiny_tokenizer):
    own = {"repetition_penalty": 3.0, "num_beams": 3, "suppress_tokens": list(range(10, 80)), "max_length": 7}
    own |= {"do_sample": True, "top_k": 3, "forced_eos_token_id": 1, "eos_token_id": [1, 5]}
    wanted = [hf_generate(model, prompt, max_new_tokens=9) for prompt in PROMPTS]
    start = {name: getattr(model.generation_config, name) for name in ("decoder_start_token_id", "eos_token_id")}
    kept = model.generation_config
    changed = copy.deepcopy(kept)
    changed.update(**own)
    model.generation_config = changed
    before = changed.to_dict()
    try:
        params = GenerationParams.of({"max_new_tokens": 9, **start})
        results = generate_plain(model, tiny_tokenizer, PROMPTS, params, range(len(PROMPTS)))
        assert model.generation_config is changed
        assert changed.to_dict() == before
    finally:
        model.generation_config = kept
    assert [list(tokens) for tokens, _, _ in results] == wanted


SAMPLED = [
    {"do_sample": True, "temperature": 1.5},
    {"do_sample": True, "num_beams": 2, "top_k": 30},
]


@pytest.mark.parametrize("values", SAMPLED)
def test_draws_belong_to_the_row(model, tiny_tokenizer, values):
    keys = [11, 12, 13]
    results = plain(model, tiny_tokenizer, values, PROMPTS[:3], keys)
    again = plain(model, tiny_tokenizer, values, [PROMPTS[2], PROMPTS[0]], [13, 11])
    assert again == [results[2], results[0]]
    assert plain(model, tiny_tokenizer, values, PROMPTS[:3], [61, 62, 63]) != results
    assert plain(model, tiny_tokenizer, {**values, "generation_seed": 3}, PROMPTS[:3], keys) != results


@pytest.mark.parametrize("values", [{}, *SAMPLED, {"prompt_lookup_num_tokens": 3, "do_sample": True}])
def test_global_generators_stay_untouched(tiny_llama, tiny_tokenizer, values):
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    plain(tiny_llama, tiny_tokenizer, values)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


ASSISTED = [
    {"prompt_lookup_num_tokens": 3},
    {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1, "num_assistant_tokens": 4},
    {"assistant_early_exit": 1, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"},
    {"assistant_early_exit": 1, "assistant_confidence_threshold": 0.0},
]


@pytest.mark.parametrize("values", ASSISTED)
def test_assisted_decoding_gives_the_greedy_tokens(tiny_llama, tiny_tokenizer, values):
    assert GenerationParams.of({"max_new_tokens": 9, **values}).kind == "assisted"
    assert plain(tiny_llama, tiny_tokenizer, values) == plain(tiny_llama, tiny_tokenizer, {})


@pytest.mark.parametrize("beams", [1, 3])
def test_stops_cut_each_row_on_its_own(model, tiny_tokenizer, beams):
    free = plain(model, tiny_tokenizer, {"num_beams": beams})
    sequence = list(free[2][0][3:5])
    results = plain(model, tiny_tokenizer, {"num_beams": beams, "stop_token_sequences": [sequence]})
    for (tokens, reason, _), (before, _, _) in zip(results, free, strict=True):
        found = [n for n in range(2, len(tokens) + 1) if list(tokens[n - 2 : n]) == sequence]
        assert (reason == "stop") == bool(found)
        assert found in ([], [len(tokens)])
        if beams == 1:
            assert tokens == before[: len(tokens)]
    assert beams > 1 or results[2][1] == "stop"


def test_a_stop_string_ends_the_text_before_it(tiny_llama, tiny_tokenizer):
    tokens, _, text = plain(tiny_llama, tiny_tokenizer, {"eos_token_id": None})[0]
    stop = tiny_tokenizer.decode(tokens[4:6])
    cut, reason, short = plain(tiny_llama, tiny_tokenizer, {"eos_token_id": None, "stop": stop})[0]
    assert reason == "stop"
    assert short == text[: text.index(stop)]
    assert cut == tokens[: len(cut)]


def test_own_truncations_are_applied(tiny_llama, tiny_tokenizer):
    """With a top_n_sigma near 0 only the likeliest token is left, whatever the temperature and the seed."""
    values = {"do_sample": True, "top_k": 0, "temperature": 3.0}
    assert plain(tiny_llama, tiny_tokenizer, {**values, "top_n_sigma": 0.001}) == plain(tiny_llama, tiny_tokenizer, {})
    beams = {**values, "num_beams": 2}
    assert plain(tiny_llama, tiny_tokenizer, {**beams, "top_a": 0.9}) != plain(tiny_llama, tiny_tokenizer, beams)


def test_a_list_with_one_start_token_is_one_token(tiny_tokenizer):
    values = {"decoder_start_token_id": [2]}
    results = plain(MODELS["t5"], tiny_tokenizer, values)
    assert results == plain(MODELS["t5"], tiny_tokenizer, {})


def test_padding_that_changes_logits_is_not_used(tiny_tokenizer, monkeypatch):
    model = make("t5")
    forward = model.encoder.forward

    def blind(input_ids=None, attention_mask=None, **kwargs):
        return forward(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), **kwargs)

    monkeypatch.setattr(model.encoder, "forward", blind)
    results = plain(model, tiny_tokenizer, {})
    for prompt, (tokens, _, _) in zip(PROMPTS, results, strict=True):
        assert list(tokens) == hf_generate(model, prompt, max_new_tokens=9)


def test_refusals_name_the_parameter(tiny_llama, tiny_tokenizer):
    assert refuse_reason(GenerationParams.of({"max_new_tokens": 3}), tiny_llama) is None
    lookup = GenerationParams.of({"max_new_tokens": 3, "prompt_lookup_num_tokens": 2})
    assert "assisted" in refuse_reason(lookup, MODELS["mamba"])
    with pytest.raises(DecodingError, match="assisted"):
        generate_plain(MODELS["mamba"], tiny_tokenizer, PROMPTS, lookup, range(5))


def test_what_hugging_face_refuses_is_a_decoding_error(tiny_llama, tiny_tokenizer):
    own = tiny_llama.generation_config
    with pytest.raises(DecodingError, match="Hugging Face refuses"):
        plain(tiny_llama, tiny_tokenizer, {"sequence_bias": [[[500], 2.0]]})
    assert tiny_llama.generation_config is own
    assert isinstance(own, GenerationConfig)
