"""A budget for thinking against a plain loop over one row, under replay, out of memory, and in `model.generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.hf_processors import own_processors
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, reasoning_span
from llmsearch_optuna.errors import DecodingError, InputError
from tests.engine.decoding import PROMPTS, FailingForward, drain
from tests.engine.test_thinking import chats, is_split_by_hand
from tests.engine.thinking import by_hand, ids_of, thinking_model, thinking_tokenizer
from tests.tiny import make_tokenizer

NEW = 16

CASES: tuple[dict[str, Any], ...] = (
    {"thinking_budget": 0},
    {"thinking_budget": 1, "repetition_penalty": 1.3},
    {"thinking_budget": 4},
    {"thinking_budget": 3, "do_sample": True, "top_k": 0, "temperature": 1.3},
    {"thinking_budget": 5, "do_sample": True, "top_k": 7, "temperature": 0.8, "generation_seed": 3},
    {"thinking_budget": 2, "do_sample": True, "top_k": 0, "repetition_penalty": 0.8},
)


def auto_span() -> ReasoningSpan:
    span = reasoning_span("auto", thinking_tokenizer())
    assert span is not None
    return span


def complete(values: dict[str, Any]) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": NEW, **values}, model_defaults(thinking_model()))


def expected(prompts: list[str], params: GenerationParams, span: ReasoningSpan) -> list[tuple[int, ...]]:
    return [by_hand(thinking_model(), ids_of(thinking_tokenizer(), prompt), params, span) for prompt in prompts]


@pytest.mark.parametrize("values", CASES)
@pytest.mark.parametrize("variables", [{}, {"open_thinking": True}])
def test_the_engine_closes_a_thought_as_a_plain_loop_does(values: dict[str, Any], variables: dict[str, bool]) -> None:
    params, span, prompts = complete(values), auto_span(), chats(**variables)[:4]
    wanted = expected(prompts, params, span)
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=3)
    found = engine.generate(prompts, params)
    assert [c.token_ids for c in found] == wanted
    assert [c.token_ids for c in engine.generate(prompts[::-1], params)] == wanted[::-1]  # from what is cached
    without = Engine(thinking_model(), thinking_tokenizer(), cache_budget=0, top=5)
    assert [c.token_ids for c in without.generate(prompts, params)] == wanted
    for completion, prompt in zip(found, prompts, strict=True):
        is_split_by_hand(completion, prompt, span)
        assert completion.reasoning_tokens <= 1 + values["thinking_budget"] + 1
    if variables:
        assert all(c.answer_tokens or c.finish_reason == "eos" for c in found)
        assert any(c.text for c in found)


@settings(max_examples=40)
@given(
    budgets=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    first=st.integers(0, 6),
    second=st.integers(0, 8),
    sampled=st.booleans(),
    seed=st.integers(0, 3),
    cache=st.sampled_from([0, 3_000, 30_000, 10**8]),
)
def test_markers_of_several_tokens_are_forced_as_a_plain_loop_does(
    budgets: list[int], sizes: tuple[int, int], first: int, second: int, sampled: bool, seed: int, cache: int
) -> None:
    """Markers are pieces of what the model writes, so that thoughts end by themselves and within a marker, too."""
    values = {"do_sample": sampled, "top_k": 0, "generation_seed": seed, "temperature": 1.2}
    ids = ids_of(thinking_tokenizer(), PROMPTS[seed])
    free = by_hand(thinking_model(), ids, complete(values), ReasoningSpan("a", "b"))
    markers = free[first : first + sizes[0]], free[second : second + sizes[1]]
    if not all(markers) or markers[0] == markers[1]:
        return
    span = ReasoningSpan("a", "b", *markers)
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=3, cache_budget=cache)
    asked = [complete(values | {"thinking_budget": budget}) for budget in budgets]
    requests = [
        Request(index, row, prompt, params, reasoning=span)
        for index, params in enumerate(asked)
        for row, prompt in enumerate(PROMPTS[seed : seed + 2])
    ]
    for request, completion in drain(engine, requests):
        prompt = ids_of(thinking_tokenizer(), request.prompt)
        assert completion.token_ids == by_hand(thinking_model(), prompt, request.params, span)
        is_split_by_hand(completion, request.prompt, span)


def test_out_of_memory_changes_no_token() -> None:
    params, prompts = complete({"thinking_budget": 4, "do_sample": True, "top_k": 0}), chats(open_thinking=True)
    wanted = expected(prompts, params, auto_span())
    for when in ({2, 5}, {3, 4, 9}, {6, 7, 8, 12}):
        engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=4)
        with FailingForward(thinking_model(), when, torch.OutOfMemoryError, "CUDA out of memory"):
            found = engine.generate(prompts, params)
        assert [c.token_ids for c in found] == wanted
        assert engine.stats.out_of_memory >= 1


@pytest.mark.parametrize("values", [case for case in CASES if "do_sample" not in case])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("variables", [{}, {"open_thinking": True}])
def test_generate_with_the_processor_gives_the_same_tokens(
    values: dict[str, Any], beams: int, variables: dict[str, bool]
) -> None:
    params = complete({**values, "num_beams": beams})
    prompts = chats(**variables)[:3]
    found = Engine(thinking_model(), thinking_tokenizer()).generate(prompts, params)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([ids_of(thinking_tokenizer(), prompt)])
        made = thinking_model().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=own_processors(params, reasoning=auto_span()),
            **params.to_hugging_face(model_defaults(thinking_model())),
        )
        assert completion.token_ids == tuple(made[0, ids.shape[1] :].tolist())


def test_what_goes_through_generate_keeps_the_budget() -> None:
    prompts = chats(open_thinking=True)[:4]
    engine = Engine(thinking_model(), thinking_tokenizer())
    rowwise = engine.generate(prompts, complete({"thinking_budget": 3}))
    plain = engine.generate(prompts, complete({"thinking_budget": 3, "prompt_lookup_num_tokens": 2}))
    assert [c.token_ids for c in plain] == [c.token_ids for c in rowwise]
    assert engine.stats.plain_requests == len(prompts)


def test_a_budget_needs_to_know_the_markers() -> None:
    engine = Engine(thinking_model(), make_tokenizer())
    with pytest.raises(DecodingError, match="give reasoning="):
        engine.generate(["How many"], complete({"thinking_budget": 3}))


def test_a_budget_that_no_thought_reaches_is_none() -> None:
    assert complete({"thinking_budget": NEW}) == complete({})
    assert complete({"thinking_budget": NEW - 1}) != complete({})
    assert complete({"thinking_budget": NEW}).inert == ("thinking_budget",)
    with pytest.raises(InputError, match="thinking_budget"):
        complete({"thinking_budget": 3, "thinking_token_budget": 3})
    with pytest.raises(InputError, match="thinking_budget=-1"):
        complete({"thinking_budget": -1})
