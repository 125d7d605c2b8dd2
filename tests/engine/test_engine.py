"""The engine against `model.generate` on one unpadded prompt, and against itself in every other arrangement."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError, InputError
from tests.engine.architectures import PLAIN, ROW_BY_ROW, make
from tests.engine.decoding import CONFIGURATIONS, PROMPTS, drain, tokens_of
from tests.engine.own_cache import with_own_cache
from tests.oracle import hf_generate


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_greedy_and_beams_are_those_of_generate(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(name)
    engine = Engine(model, tiny_tokenizer, batch_size=16)
    assert "row by row" in engine.capabilities
    for params in ({"max_new_tokens": 12}, {"max_new_tokens": 8, "num_beams": 3}):
        for _ in range(2):  # the second time everything comes from the trees
            for prompt, tokens in zip(PROMPTS, tokens_of(engine, PROMPTS, params), strict=True):
                assert list(tokens) == hf_generate(model, tiny_tokenizer(prompt).input_ids, **params)
    before = engine.stats.forward_tokens
    tokens_of(engine, PROMPTS, {"max_new_tokens": 9})
    assert engine.stats.forward_tokens == before, "a smaller max_new_tokens replays completely"
    assert engine.stats.forward_tokens == engine.stats.distinct_prefixes


@pytest.mark.parametrize("name", PLAIN)
def test_other_architectures_take_the_plain_path(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(name)
    engine = Engine(model, tiny_tokenizer, batch_size=4)
    assert "model.generate" in engine.capabilities
    for prompt, tokens in zip(PROMPTS, tokens_of(engine, PROMPTS, {"max_new_tokens": 8}), strict=True):
        assert list(tokens) == hf_generate(model, tiny_tokenizer(prompt).input_ids, max_new_tokens=8)


@pytest.mark.parametrize(
    ("batch_size", "cache_budget", "top"),
    [
        (1, "auto", 1024),
        (3, 0, 24),
        (3, 20_000, 1024),
        (16, 0, 1024),
        (16, 20_000, 24),
        (16, "auto", 24),
        (64, "auto", 24),
    ],
)
def test_every_arrangement_gives_the_same_tokens(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    batch_size: int,
    cache_budget: Any,
    top: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=top)
    for _ in range(2):
        for params, tokens in zip(CONFIGURATIONS, expected, strict=True):
            assert tokens_of(engine, PROMPTS, params) == tokens


@settings(max_examples=15)
@given(
    choice=st.lists(st.integers(0, len(CONFIGURATIONS) - 1), min_size=1, max_size=5),
    rows=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=7, unique=True),
    batch_size=st.integers(1, 20),
    cache_budget=st.sampled_from([0, 5_000, 60_000, 10_000_000]),
    shuffle=st.integers(0, 2**16),
)
def test_trials_in_flight_do_not_change_each_other(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    choice: list[int],
    rows: list[int],
    batch_size: int,
    cache_budget: int,
    shuffle: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget)
    requests = [
        Request((place, index), row, PROMPTS[row], GenerationParams.of(CONFIGURATIONS[index], engine.default_params))
        for place, index in enumerate(choice)
        for row in rows
    ]
    random.Random(shuffle).shuffle(requests)
    for request, completion in drain(engine, requests):
        assert completion.token_ids == expected[request.tag[1]][request.row]  # type: ignore[index]


@pytest.mark.parametrize(
    "values",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 3.0},
        {"repetition_penalty": 3.0, "num_beams": 2},
        {"repetition_penalty": 3.0, "encoder_repetition_penalty": 1.5},
        {"eos_token_id": [1, 5, 89, 150], "min_new_tokens": 2, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_the_pad_token_is_never_penalised(
    values: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As many tokenizers have it, the pad token ends texts here, too: a penalty on padding would show."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    asked = {"max_new_tokens": 12, **values}
    found = tokens_of(Engine(tiny_llama, tokenizer, batch_size=8), PROMPTS, asked)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert list(tokens) == hf_generate(tiny_llama, tokenizer(prompt).input_ids, **asked)
    ends = values.get("eos_token_id", [1])
    assert "eos_token_id" not in values or any(tokens[-1] in ends and len(tokens) < 12 for tokens in found)


@pytest.mark.parametrize("warping", [{"top_k": 3}, {"top_k": 0, "temperature": 0.6, "min_p": 0.2}], ids=str)
def test_pairs_of_tokens_have_the_frequencies_of_the_softmax(
    warping: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """4,000 replicates through tree and slots; what a pair's probability is, two plain forwards say."""
    count, prompt = 4000, PROMPTS[0]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    values = {"max_new_tokens": 2, "do_sample": True, "eos_token_id": None, **warping}
    params = GenerationParams.of(values, engine.default_params)
    requests = [Request("t", 0, prompt, params, replicate=n) for n in range(count)]
    drawn = Counter(completion.token_ids for _, completion in drain(engine, requests))

    def following(ids: list[int]) -> dict[int, float]:
        with torch.inference_mode():
            logits = tiny_llama(torch.tensor([ids])).logits[0, -1].double() / warping.get("temperature", 1.0)
        p = logits.softmax(-1).numpy()
        kept = p >= (np.sort(p)[-3] if warping["top_k"] else warping["min_p"] * p.max())
        return {int(token): p[token] / p[kept].sum() for token in np.flatnonzero(kept)}

    ids = tiny_tokenizer(prompt).input_ids
    pairs = {(a, b): p * q for a, p in following(ids).items() for b, q in following([*ids, a]).items()}
    assert set(drawn) <= set(pairs)
    often = [pair for pair, p in pairs.items() if p * count >= 5]
    assert len(often) >= 4
    found = [drawn[pair] for pair in often]
    wanted = [pairs[pair] * count for pair in often]
    if len(often) < len(pairs):
        found.append(count - sum(found))
        wanted.append(count - sum(wanted))
    assert stats.chisquare(found, wanted).pvalue > 1e-4


def test_equal_prompts_draw_different_noise(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    params = {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0, "top_k": 0}
    first, second = engine.generate([PROMPTS[0], PROMPTS[0]], params)
    assert first.token_ids != second.token_ids
    assert engine.generate([PROMPTS[0]], params)[0] == first


def test_nothing_touches_the_global_generator(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    engine = Engine(tiny_llama, tiny_tokenizer)
    for params in CONFIGURATIONS:
        engine.generate(PROMPTS[:2], params)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_prompt_that_does_not_fit_ends_with_the_reason(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with pytest.raises(DecodingError, match="exceed the model's context of 512"):
        engine.generate([PROMPTS[0], "word " * 500], {"max_new_tokens": 12})
    assert len(engine.generate(PROMPTS, {"max_new_tokens": 3})) == len(PROMPTS), "the engine goes on"


def test_bad_arguments_are_named(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        Engine(tiny_llama, tiny_tokenizer, batch_size=0)
    with pytest.raises(InputError, match="batch_size is 1000000000; .* from 1 to 65,536"):
        Engine(tiny_llama, tiny_tokenizer, batch_size=10**9)
    with pytest.raises(InputError, match="cache_budget is -1"):
        Engine(tiny_llama, tiny_tokenizer, cache_budget=-1)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("forced_bos_token_id", 5000, 198),
        ("forced_eos_token_id", [3, 5000], [3, 198]),
        ("bad_words_ids", [[3], [4, 5000]], [[3], [4, 198]]),
        ("sequence_bias", [[[4, 5000], 2.0]], [[[4, 198], 2.0]]),
        ("stop_token_sequences", [[5000]], [[198]]),
    ],
)
def test_a_token_that_is_named_must_be_one_of_the_model(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, name: str, value: object, known: object
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with pytest.raises(DecodingError, match=f"{name}=.* has token 5000, which is none of the model's 199 tokens"):
        engine.generate(["Anna"], {"max_new_tokens": 3, name: value})
    assert engine.generate(["Anna"], {"max_new_tokens": 3, name: known})


def test_the_cache_stays_within_its_budget(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    budget = 60_000
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8, cache_budget=budget)
    for seed in range(12):
        engine.generate(PROMPTS, {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0, "generation_seed": seed})
        assert engine.stats.cache_bytes <= budget
    assert engine.stats.evictions > 0


def test_what_cannot_be_decoded_ends_with_the_reason_and_the_engine_goes_on(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    nothing_is_left = {"max_new_tokens": 4, "suppress_tokens": list(range(199)), "num_beams": 2}
    with pytest.raises(DecodingError):
        engine.generate(PROMPTS[:2], nothing_is_left)
    assert len(engine.generate(PROMPTS[:2], {"max_new_tokens": 3})) == 2


def test_a_model_that_keeps_its_cache_to_itself_is_decoded_by_generate_and_says_so_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """As AutoAWQ's fused layers do."""
    prompts = ["Anna asks Ben", "How many apples does she have left?", "The quick brown fox"]
    engine = Engine(with_own_cache(tiny_llama), tiny_tokenizer)
    for params in ({"max_new_tokens": 10}, {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7}):
        completions = engine.generate(prompts, params)
        assert [len(c.token_ids) for c in completions]
    usual = Engine(tiny_llama, tiny_tokenizer).generate(prompts, {"max_new_tokens": 10})
    greedy = engine.generate(prompts, {"max_new_tokens": 10})
    assert [c.token_ids for c in greedy] == [c.token_ids for c in usual]
    assert engine.stats.plain_requests == 9
    assert len([r for r in caplog.records if "LlamaForCausalLM" in r.getMessage()]) == 1
    assert "model.generate" in caplog.text
