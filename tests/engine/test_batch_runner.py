"""Passes that run out of memory change no token, and end only the rows that do not fit alone."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine import batch_runner
from llmsearch_optuna.engine.cache.slots import SlotBuffer
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.memory import OUT_OF_MEMORY_MESSAGES
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from tests.engine.decoding import CONFIGURATIONS, PROMPTS, FailingForward, shuffled_requests, tokens_of
from tests.oracle import hf_generate


@settings(max_examples=6)
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


@settings(max_examples=10)
@given(
    places=st.sets(st.sampled_from(["head", "embedding", "read", "make_room", "extend"]), min_size=1),
    rate=st.sampled_from([0.03, 0.2]),
    seed=st.integers(0, 2**16),
    batch_size=st.sampled_from([1, 4, 16]),
    cache_budget=st.sampled_from([0, 20_000, 60_000, 10_000_000]),
    choice=st.permutations(range(len(CONFIGURATIONS))).map(lambda order: order[:4]),
)
def test_running_out_of_memory_anywhere_changes_no_token(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    places: set[str],
    rate: float,
    seed: int,
    batch_size: int,
    cache_budget: int,
    choice: list[int],
) -> None:
    """In looking logits up, in moving rows, in handing them over, in computing them again: four trials in flight."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=24)
    dice = random.Random(seed)

    def fail(*_: Any) -> None:
        if dice.random() < rate:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            fail()
            return function(*arguments)

        return call

    hooks = [
        module.register_forward_hook(fail)
        for place, module in (("head", tiny_llama.lm_head), ("embedding", tiny_llama.model.embed_tokens))
        if place in places
    ]
    requests = shuffled_requests(engine, choice, dice)
    finished = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "llmsearch_optuna.engine.out_of_memory.give_back", lambda device: None
        )  # collecting takes minutes
        for place in places & {"read", "make_room"}:
            patch.setattr(SlotBuffer, place, failing(getattr(SlotBuffer, place)))
        if "extend" in places:
            patch.setattr(ModelRunner, "extend", failing(ModelRunner.extend))
        engine.submit(requests)
        while batch := engine.poll():
            finished += batch
    for hook in hooks:
        hook.remove()
    assert len(finished) == len(requests)
    for item in finished:
        if item.completion is None:
            assert "one row alone does not fit" in str(item.error)
        else:
            assert item.completion.token_ids == expected[item.request.tag][item.request.row]  # type: ignore[index]
    for index in choice:  # what was kept on the way is right, too
        assert tokens_of(engine, PROMPTS, CONFIGURATIONS[index]) == expected[index]


def test_logits_that_do_not_fit_end_the_row_that_needs_them(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    engine.generate(PROMPTS, {"max_new_tokens": 4})  # the tree has what greedy needs
    needs_all = GenerationParams.of({"max_new_tokens": 4, "repetition_penalty": 0.7}, engine.default_params)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = tiny_llama.lm_head.register_forward_hook(fail)
    try:
        engine.submit([Request("trial", row, prompt, needs_all) for row, prompt in enumerate(PROMPTS)])
        finished = []
        while batch := engine.poll():
            finished += batch
        replayed = engine.generate(PROMPTS, {"max_new_tokens": 4})
    finally:
        hook.remove()
    assert len(finished) == len(PROMPTS)
    assert all("one row alone does not fit" in str(item.error) for item in finished)
    assert engine.stats.cache_bytes > 0, "scores are not given up for it"
    assert [list(c.token_ids) for c in replayed] == [
        hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, max_new_tokens=4) for prompt in PROMPTS
    ]


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


def test_the_last_resort_is_there_again_after_a_pass_of_the_plain_path(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving up the rows in flight makes room once; a row of a later pass has the same right to it."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=1, cache_budget=0)
    params, calls = {"max_new_tokens": 4, "encoder_repetition_penalty": 1.5}, []
    wanted = engine.generate(PROMPTS[:3], params)
    assert engine.stats.plain_requests == 3
    plain = batch_runner.generate_plain

    def failing_every_other_time(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments)

    monkeypatch.setattr(batch_runner, "generate_plain", failing_every_other_time)
    assert engine.generate(PROMPTS[:3], params) == wanted
    assert len(calls) == 6


def test_a_row_gets_the_room_of_stored_scores_before_it_fails(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """A device on which nothing can be computed beside more than these scores."""
    params = {"max_new_tokens": 6}
    alone = [hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, **params) for prompt in PROMPTS]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=1)
    engine.generate(PROMPTS[:1], params)
    room = 2 * engine._cache.scores.nbytes

    def refuse(*_: Any) -> None:
        if engine._cache.scores.nbytes > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_llama.model.norm.register_forward_hook(refuse)
    try:
        assert [list(c.token_ids) for c in engine.generate(PROMPTS, params)] == alone
        room = -1
        with pytest.raises(DecodingError, match="one row alone does not fit"):
            engine.generate(["Something else"], params)
    finally:
        handle.remove()
    assert "bytes of next-token scores" in caplog.text
    assert [list(c.token_ids) for c in engine.generate(PROMPTS, params)] == alone
