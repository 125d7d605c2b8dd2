"""Settings that decode the same have one canonical form, those that do not have two."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig
from transformers.generation import GenerationMode, SynthIDTextWatermarkingConfig, WatermarkingConfig

from llmsearch_optuna.engine.sampling.params import GenerationParams


def of(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 16, **values})


@pytest.mark.parametrize(
    ("values", "kind", "mode"),
    [
        ({}, "greedy", GenerationMode.GREEDY_SEARCH),
        ({"do_sample": True}, "sampling", GenerationMode.SAMPLE),
        ({"num_beams": 3}, "beam", GenerationMode.BEAM_SEARCH),
        ({"num_beams": 3, "do_sample": True}, "beam_sampling", GenerationMode.BEAM_SAMPLE),
        ({"prompt_lookup_num_tokens": 3}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"assistant_early_exit": 3, "do_sample": True}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"num_beams": 1, "use_mtp": True}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"num_beams": 2, "prompt_lookup_num_tokens": 3}, "beam", GenerationMode.BEAM_SEARCH),
    ],
    ids=str,
)
def test_kind_is_hugging_faces_mode(values: dict[str, Any], kind: str, mode: GenerationMode) -> None:
    assert of(**values).kind == kind
    assert GenerationConfig(**values).get_generation_mode() == mode


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # nothing is sampled
    ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5, "top_h": 0.3}, {}),
    ({"epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "tfs": 0.9, "top_a": 0.1, "top_n_sigma": 1.0}, {}),
    ({"generation_seed": 3}, {}),
    ({"num_beams": 3, "temperature": 0.7, "generation_seed": 3}, {"num_beams": 3}),
    # neutral values
    ({"do_sample": False, "num_beams": 1}, {}),
    ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1}, {"do_sample": True}),
    ({"do_sample": True, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "tfs": 1.0, "top_a": 0}, {"do_sample": True}),
    ({"do_sample": True, "generation_seed": 0}, {"do_sample": True}),
    ({"repetition_penalty": 1.0, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0}, {}),
    ({"encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0, "remove_invalid_values": False}, {}),
    ({"suppress_tokens": [], "begin_suppress_tokens": [], "bad_words_ids": [], "stop": []}, {}),
    ({"sequence_bias": {(3,): 0.0}, "stop_token_sequences": [], "token_healing": False}, {}),
    ({"min_new_tokens": 0, "min_length": 0, "eos_token_id": 2}, {"eos_token_id": 2}),
    # top-k is 50 where it is not given
    ({"do_sample": True, "top_k": 50}, {"do_sample": True}),
    ({"do_sample": True, "top_k": None}, {"do_sample": True, "top_k": 0}),
    # beams
    ({"length_penalty": 2.0, "early_stopping": True, "renormalize_logits": True}, {}),
    ({"num_beams": 2, "length_penalty": 1.0, "early_stopping": False}, {"num_beams": 2}),
    ({"num_beams": 2, "prompt_lookup_num_tokens": 3, "use_mtp": True}, {"num_beams": 2}),
    # assisted
    ({"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.3, "max_matching_ngram_size": 2}, {}),
    ({"num_assistant_tokens_schedule": "constant", "assistant_ensemble_weight": 0.5}, {}),
    # what others make void
    ({"min_length": 3}, {}),
    ({"min_new_tokens": 3, "min_length": 3}, {"min_new_tokens": 3}),
    ({"min_new_tokens": 3, "min_length": 9, "eos_token_id": 2}, {"min_new_tokens": 3, "eos_token_id": 2}),
    ({"min_new_tokens": 99, "eos_token_id": 2}, {"min_new_tokens": 16, "eos_token_id": 2}),
    ({"exponential_decay_length_penalty": (15, 1.2), "eos_token_id": 2}, {"eos_token_id": 2}),
    ({"exponential_decay_length_penalty": (5, 1.0), "eos_token_id": 2}, {"eos_token_id": 2}),
    ({"bad_words_ids": [[2], [3]], "eos_token_id": 2}, {"bad_words_ids": [[3]], "eos_token_id": 2}),
    # speed and memory
    ({"use_cache": False, "cache_implementation": "static", "cache_config": {"a": 1}, "max_cache_len": 99}, {}),
    ({"disable_compile": True, "prefill_chunk_size": 9, "low_memory": True, "pad_token_id": 7}, {}),
    # other spellings
    ({"eos_token_id": 2}, {"eos_token_id": [2]}),
    ({"eos_token_id": [5, 2, 5]}, {"eos_token_id": (2, 5)}),
    ({"stop_strings": "a"}, {"stop": ["a"]}),
    ({"stop": ["b", "a", "b"]}, {"stop": ["a", "b"]}),
    ({"stop": ["a"], "stop_strings": "a"}, {"stop": "a"}),
    ({"bad_words_ids": [[3, 4], [1]]}, {"bad_words_ids": ((1,), (3, 4), (1,))}),
    ({"sequence_bias": {(3,): 1, (1, 2): 0.5}}, {"sequence_bias": [[[1, 2], 0.5], [(3,), 1.0]]}),
    ({"repetition_penalty": 1.1 + 1e-14}, {"repetition_penalty": 1.1}),
    (
        {"watermarking_config": WatermarkingConfig(bias=3.0)},
        {"watermarking_config": WatermarkingConfig(bias=3.0).to_dict()},
    ),
    (
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[7, 9])},
        {"watermarking_config": {"ngram_len": 3, "keys": [7, 9], "context_history_size": 1024}},
    ),
]


@pytest.mark.parametrize(("values", "other"), SAME, ids=str)
def test_settings_that_decode_the_same_are_one(values: dict[str, Any], other: dict[str, Any]) -> None:
    assert of(**values).canonical == of(**other).canonical
    assert of(**values).fingerprint == of(**other).fingerprint
    assert of(**values) == of(**other)
    assert len({of(**values), of(**other)}) == 1


DIFFERENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"do_sample": True}, {}),
    ({"do_sample": True}, {"do_sample": True, "top_k": 0}),
    ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.70001}),
    ({"do_sample": True, "generation_seed": 1}, {"do_sample": True}),
    ({"do_sample": True, "num_beams": 2, "generation_seed": 1}, {"do_sample": True, "num_beams": 2}),
    ({"num_beams": 2, "length_penalty": 2.0}, {"num_beams": 2}),
    ({"num_beams": 2, "early_stopping": "never"}, {"num_beams": 2}),
    ({"stop": "a"}, {}),
    ({"eos_token_id": 2}, {}),
    ({"max_new_tokens": 17}, {}),
    ({"cache_implementation": "quantized"}, {}),
    ({"cache_implementation": "quantized", "cache_config": {"nbits": 2}}, {"cache_implementation": "quantized"}),
    ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}, {"prompt_lookup_num_tokens": 3}),
    ({"exponential_decay_length_penalty": (14, 1.2), "eos_token_id": 2}, {"eos_token_id": 2}),
]


@pytest.mark.parametrize(("values", "other"), DIFFERENT, ids=str)
def test_settings_that_decode_differently_are_two(values: dict[str, Any], other: dict[str, Any]) -> None:
    assert of(**values) != of(**other)
    assert of(**values).fingerprint != of(**other).fingerprint
