"""The engine against `model.generate` on one unpadded prompt, and against itself in every other arrangement."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.decoding.engine import Engine
from llmsearch_optuna.decoding.memory import OUT_OF_MEMORY_MESSAGES
from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.decoding.requests import Completion, Request
from llmsearch_optuna.errors import DecodingError, InputError
from tests.decoding.architectures import PLAIN, ROW_BY_ROW, make
from tests.decoding.own_cache import with_own_cache
from tests.oracle import hf_generate

PROMPTS = (
    "The quick brown fox jumps over the lazy dog",
    "Anna asks Ben whether the train",
    "How many apples",
    "Thank you very much! You are welcome; see you tomorrow, or on 30 May",
    "#Person1#: Could you send me the report? #Person2#:",
    "T",
    "Anna asks Ben whether the cat sleeps",
)
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 7, "repetition_penalty": 1.3},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"max_new_tokens": 12, "do_sample": True, "temperature": 1.4, "top_k": 20},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 1.1, "top_k": 0, "generation_seed": 5},
    {"max_new_tokens": 10, "do_sample": True, "typical_p": 0.6, "top_k": 0},
    {"max_new_tokens": 8, "num_beams": 3},
    {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.3, "repetition_penalty": 1.2},
    {"max_new_tokens": 8, "num_beams": 2, "do_sample": True, "temperature": 0.9, "top_k": 0},
)


def tokens_of(engine: Engine, prompts: Sequence[str], params: dict[str, Any]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.generate(prompts, params)]


def reference(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> list[list[tuple[int, ...]]]:
    """Every configuration on a fresh engine that keeps nothing and computes one row at a time."""
    results = []
    for params in CONFIGURATIONS:
        engine = Engine(model, tokenizer, batch_size=1, cache_budget=0, **options)
        results.append(tokens_of(engine, PROMPTS, params))
    return results


@pytest.fixture(scope="module")
def expected(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> list[list[tuple[int, ...]]]:
    return reference(tiny_llama, tiny_tokenizer)


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


def drain(engine: Engine, requests: Sequence[Request]) -> list[tuple[Request, Completion]]:
    engine.submit(requests)
    results = []
    while finished := engine.poll():
        for item in finished:
            assert item.completion is not None, item.error
            results.append((item.request, item.completion))
    assert len(results) == len(requests)
    return results


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


def test_rows_on_the_same_node_are_computed_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    params = GenerationParams.of({"max_new_tokens": 12}, engine.default_params)
    drain(engine, [Request(tag, 0, PROMPTS[0], params) for tag in range(4)])
    stats = engine.stats
    assert stats.forward_tokens == stats.distinct_prefixes == stats.tokens // 4


def test_a_cancelled_tag_leaves_at_once_and_its_work_is_kept(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    params = GenerationParams.of({"max_new_tokens": 12}, engine.default_params)
    engine.submit([Request("weak", row, prompt, params) for row, prompt in enumerate(PROMPTS)])
    first = engine.poll()
    engine.cancel("weak")
    assert engine.poll() == []
    before = engine.stats
    drain(engine, [Request("next", finished.request.row, finished.request.prompt, params) for finished in first])
    assert engine.stats.since(before).forward_tokens == 0


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
    with pytest.raises(InputError, match="cache_budget is -1"):
        Engine(tiny_llama, tiny_tokenizer, cache_budget=-1)


def test_a_shared_prefix_is_computed_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = "Summarize the dialogue in one sentence: they will meet at the station. " * 3
    prompts = [prefix + prompt for prompt in PROMPTS]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8)
    for prompt, tokens in zip(prompts, tokens_of(engine, prompts, {"max_new_tokens": 8}), strict=True):
        assert list(tokens) == hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, max_new_tokens=8)
    whole = sum(len(tiny_tokenizer(prompt).input_ids) for prompt in prompts)
    assert engine.stats.prefill_tokens < whole / 2


class FailingForward:
    """Throws an error in chosen forward passes of a model, after they have run and while their tensors are alive."""

    def __init__(self, model: LlamaForCausalLM, when: set[int], error: type[Exception], message: str) -> None:
        self.calls = 0
        self.held: list[weakref.ref[torch.Tensor]] = []
        self._when, self._error, self._message = when, error, message
        self._handle = model.model.norm.register_forward_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        self.calls += 1
        if self.calls in self._when:
            activations = torch.zeros(8)
            self.held.append(weakref.ref(activations))
            try:
                raise ValueError("the allocator below")
            except ValueError as cause:
                raise self._error(self._message) from cause

    def __enter__(self) -> FailingForward:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@settings(max_examples=12)
@given(
    when=st.sets(st.integers(1, 60), max_size=12),
    error=st.sampled_from(
        [
            (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
            (MemoryError, ""),
            *((RuntimeError, f"{part.upper()} in some allocator") for part in OUT_OF_MEMORY_MESSAGES),
        ]
    ),
    batch_size=st.sampled_from([2, 7, 16]),
    cache_budget=st.sampled_from([0, 60_000, 10_000_000]),
)
def test_running_out_of_memory_changes_no_token(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    when: set[int],
    error: tuple[type[Exception], str],
    batch_size: int,
    cache_budget: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget)
    with FailingForward(tiny_llama, when, *error) as forward:
        for index in (0, 3, 7):
            results = {}
            params = GenerationParams.of(CONFIGURATIONS[index], engine.default_params)
            engine.submit([Request(index, row, prompt, params) for row, prompt in enumerate(PROMPTS)])
            while finished := engine.poll():
                results |= {item.request.row: item for item in finished}
            for row, item in results.items():
                if item.completion is not None:
                    assert item.completion.token_ids == expected[index][row]
                else:
                    assert "one row alone does not fit" in str(item.error)
    assert engine.stats.out_of_memory <= len(when & set(range(1, forward.calls + 1)))
    gc.collect()
    assert [reference() for reference in forward.held] == [None] * len(forward.held), "an error keeps tensors alive"
    if cache_budget == 10_000_000:
        assert engine.stats.forward_tokens == engine.stats.distinct_prefixes, "only what failed is repeated"


def test_a_row_that_never_fits_fails_alone(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8)
    with FailingForward(tiny_llama, set(range(1, 1000)), torch.OutOfMemoryError, "out of memory"):
        params = GenerationParams.of({"max_new_tokens": 4}, engine.default_params)
        engine.submit([Request("trial", row, prompt, params) for row, prompt in enumerate(PROMPTS)])
        finished = []
        while batch := engine.poll():
            finished += batch
    assert {item.request.row for item in finished} == set(range(len(PROMPTS)))
    assert all("one row alone does not fit" in str(item.error) for item in finished)
    assert [c.token_ids for c in engine.generate(PROMPTS, {"max_new_tokens": 4})]


def test_errors_that_are_not_about_memory_are_not_swallowed(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with (
        FailingForward(tiny_llama, {1}, RuntimeError, "shape mismatch"),
        pytest.raises(RuntimeError, match="shape mismatch"),
    ):
        engine.generate(PROMPTS, {"max_new_tokens": 4})


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
