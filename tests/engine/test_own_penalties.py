"""Presence, frequency, DRY and XTC: a plain loop over one row, transcribed from vLLM and llama.cpp, decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LogitsProcessorList, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.sampling.dry import breakers_of
from llmsearch_optuna.engine.sampling.gumbel import gumbel, noise_bits, row_key
from llmsearch_optuna.engine.sampling.hf_processors import own_processors
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from tests.engine.decoding import PROMPTS, tokens_of
from tests.engine.sampling.test_dry import dry_by_hand

SAMPLED = {"do_sample": True, "top_k": 0, "temperature": 1.3}
NEW = 14

CASES: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 1.5},
    {"frequency_penalty": 2.0},
    {"presence_penalty": -0.7, "frequency_penalty": 0.9},
    {"frequency_penalty": -1.0, **SAMPLED},
    {"presence_penalty": 2.0, "repetition_penalty": 1.2},
    {"dry_multiplier": 2.5, "dry_allowed_length": 0},
    {"dry_multiplier": 4.0, "dry_allowed_length": 1, "dry_base": 1.3, "dry_penalty_last_n": 6, **SAMPLED},
    {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_sequence_breakers": ["a", "ou"]},
    {"xtc_probability": 0.6, "xtc_threshold": 0.01, **SAMPLED, "temperature": 0.4},
    {"xtc_probability": 1.0, "xtc_threshold": 0.005, **SAMPLED, "presence_penalty": 1.0, "dry_multiplier": 1.0},
)


def by_hand(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: list[int], params: GenerationParams
) -> tuple[int, ...]:
    """One whole forward a token, and the rules one after the other, token by token."""
    written: list[int] = []
    while len(written) < params.max_new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + written])).logits[0, -1].float().numpy()
        scores = _penalised(logits.copy(), prompt, written, params, tokenizer)
        if not params.get("do_sample"):
            written.append(int(np.argmax(scores)))
        else:
            scores = _without_top_choices(scores, row_key(prompt), len(written), params)
            warm = (scores / np.float32(params.get("temperature", 1.0))).astype(np.float64)
            noise = gumbel(params.generation_seed, [row_key(prompt)], [len(written)], np.arange(len(warm))[None])[0]
            written.append(int(np.argmax(warm + noise)))
        if written[-1] in params.eos_token_ids:
            break
    return tuple(written)


def _penalised(
    scores: np.ndarray, prompt: list[int], written: list[int], params: GenerationParams, tokenizer: Any
) -> np.ndarray:
    if "repetition_penalty" in params:
        penalty = np.float32(params["repetition_penalty"])
        for token in set(prompt + written):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    for token, count in Counter(written).items():
        scores[token] -= np.float32(params.get("frequency_penalty", 0.0)) * np.float32(count)
        scores[token] -= np.float32(params.get("presence_penalty", 0.0))
    if "dry_multiplier" in params:
        for token, penalty in dry_by_hand(prompt + written, params, breakers_of(params, tokenizer)).items():
            scores[token] -= np.float32(penalty)
    return scores


def _without_top_choices(scores: np.ndarray, key: int, step: int, params: GenerationParams) -> np.ndarray:
    """As ``llama_sample_xtc_apply``, the coin being noise of a token that no vocabulary has."""
    chance = float(noise_bits(params.generation_seed, [key], [step], [[2**40]])[0, 0]) / 2**53
    if "xtc_probability" not in params or chance > params["xtc_probability"]:
        return scores
    p = torch.from_numpy(scores.astype(np.float64)).softmax(-1).numpy()
    order = sorted(range(len(p)), key=lambda token: (-p[token], -token))
    last = 0
    for place, token in enumerate(order):
        if p[token] < params.get("xtc_threshold", 0.1):
            break
        last = place
    for token in order[:last]:
        scores[token] = -np.inf
    return scores


@pytest.mark.parametrize("values", CASES)
def test_the_engine_decodes_as_a_plain_loop(
    values: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    values = {"max_new_tokens": NEW, **values}
    params = GenerationParams.of(values, model_defaults(tiny_llama))
    assert params.inert == ()
    prompts = PROMPTS[:4]
    expected = [by_hand(tiny_llama, tiny_tokenizer, tiny_tokenizer(text)["input_ids"], params) for text in prompts]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=3)
    assert tokens_of(engine, prompts, values) == expected
    assert tokens_of(engine, prompts[::-1], values) == expected[::-1]  # from what is cached
    assert tokens_of(Engine(tiny_llama, tiny_tokenizer, cache_budget=0, top=5), prompts, values) == expected
    plain = {name: value for name, value in values.items() if name in ("max_new_tokens", *SAMPLED)}
    assert tokens_of(engine, prompts, plain) != expected


@pytest.mark.parametrize("values", [case for case in CASES if "do_sample" not in case])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_the_processors_gives_the_same_tokens(
    values: dict[str, Any], beams: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    values = {"max_new_tokens": NEW, "num_beams": beams, **values}
    params = GenerationParams.of(values, model_defaults(tiny_llama))
    found = tokens_of(Engine(tiny_llama, tiny_tokenizer), PROMPTS[:3], values)
    breakers = breakers_of(params, tiny_tokenizer)
    for text, tokens in zip(PROMPTS, found, strict=False):
        assert _generated(tiny_llama, tiny_tokenizer(text)["input_ids"], params, own_processors(params, breakers)) == [
            *tokens
        ]


def _generated(
    model: LlamaForCausalLM, prompt: Sequence[int], params: GenerationParams, processors: LogitsProcessorList
) -> list[int]:
    ids = torch.tensor([list(prompt)])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=processors,
        **params.to_hugging_face(model_defaults(model)),
    )
    return [int(token) for token in made[0, len(prompt) :]]


@pytest.mark.parametrize("values", [case for case in CASES if "do_sample" in case])
def test_the_processors_change_scores_as_the_loop_does(
    values: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """What is sampled is not comparable draw by draw with ``generate``, but the scores it would draw from are."""
    params = GenerationParams.of({"max_new_tokens": NEW, **values}, model_defaults(tiny_llama))
    prompt = tiny_tokenizer(PROMPTS[0])["input_ids"]
    processors = own_processors(params, breakers_of(params, tiny_tokenizer))
    dice = np.random.default_rng(0)
    written: list[int] = []
    for step in range(NEW):
        logits = (dice.normal(size=tiny_llama.config.vocab_size) * 4).astype(np.float32)
        wanted = _penalised(logits.copy(), prompt, written, params, tiny_tokenizer)
        wanted = _without_top_choices(wanted, row_key(prompt), step, params)
        found = processors(torch.tensor([prompt + written]), torch.from_numpy(logits)[None])[0].numpy()
        assert np.array_equal(found, wanted)
        written.append(int(dice.integers(5, 12)))


def test_penalties_count_no_token_of_the_prompt(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    first = [
        [tokens[0] for tokens in tokens_of(engine, PROMPTS, {"max_new_tokens": 1, **more})]
        for more in ({}, {"presence_penalty": 2.0, "frequency_penalty": 2.0})
    ]
    assert first[0] == first[1]


def test_a_second_text_is_recognised_by_the_same_processors(tiny_llama: LlamaForCausalLM) -> None:
    params = GenerationParams.of({"max_new_tokens": 6, "presence_penalty": 2.0, "frequency_penalty": 1.0})
    shared = own_processors(params)
    for prompt in ([5, 9, 40], [5, 9, 40], [7, 7, 7, 8, 9, 10, 3, 3, 4, 5], [60, 61]):
        assert _generated(tiny_llama, prompt, params, shared) == _generated(
            tiny_llama, prompt, params, own_processors(params)
        )
