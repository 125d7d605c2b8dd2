"""Prompts and tokenizers that are not as usual: the tokens are still those of `model.generate` on each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.errors import DecodingError
from tests.oracle import hf_generate

PARAMS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 8},
    {"max_new_tokens": 8, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 6, "num_beams": 3, "repetition_penalty": 1.2},
)
LONG = "How many apples does she have left? She has 12 - 5 = 7 apples left. " * 8
GROUPS = {
    "one token": ["T", "a", "e"],
    "duplicates": ["How many apples"] * 3,
    "equal up to a prefix": ["Anna", "Anna asks", "Anna asks Ben", "Anna asks Ben whether", "Anna asks Ben who"],
    "long beside short": [LONG, "T", LONG[:30], LONG + "Yes", "a"],
    "all behind a long prefix": [LONG, LONG + "Yes", LONG + "Yes, before noon", LONG],
}


def assert_as_alone(
    engine: Engine, model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], params: dict[str, Any]
) -> None:
    for prompt, completion in zip(prompts, engine.generate(prompts, params), strict=True):
        assert list(completion.token_ids) == hf_generate(model, tokenizer(prompt).input_ids, **params), prompt


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("cache_budget", [0, 60_000, 10**8])
def test_prompts_of_every_kind(
    group: str, cache_budget: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=3, cache_budget=cache_budget)
    for params in PARAMS:
        assert_as_alone(engine, tiny_llama, tiny_tokenizer, GROUPS[group], params)


def test_copies_of_a_prompt_are_counted_by_what_stands_before_them(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    params = {"max_new_tokens": 10, "do_sample": True, "temperature": 3.0, "top_k": 0}
    copies = engine.generate(["T", "a", "T", "T"], params)
    assert len({copies[row].token_ids for row in (0, 2, 3)}) == 3
    among_others = engine.generate(["e", "T", "How many", "T"], params)
    assert [among_others[1], among_others[3]] == [copies[0], copies[2]]
    ids = tiny_tokenizer("T").input_ids
    assert len({row_key(ids, copy) for copy in range(3)}) == 3


@pytest.mark.parametrize("params", [{"max_new_tokens": 4}, {"max_new_tokens": 4, "guidance_scale": 1.5}])
def test_an_empty_prompt_is_named(
    params: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with pytest.raises(DecodingError, match="row 1: the prompt is empty"):
        engine.generate(["How many", "", "T"], params)
    assert_as_alone(engine, tiny_llama, tiny_tokenizer, ["How many", "T"], params)
    assert engine.poll() == [], "nothing of the failed call is left in flight"


def test_a_prompt_may_fill_the_context_up_to_the_last_new_token(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=2)
    room = tiny_llama.config.max_position_embeddings
    assert_as_alone(engine, tiny_llama, tiny_tokenizer, ["T" * (room - 8), "T"], {"max_new_tokens": 8})
    with pytest.raises(DecodingError, match=f"row 0: {room - 7} prompt tokens and max_new_tokens=8 exceed .* {room};"):
        engine.generate(["T" * (room - 7), "T"], {"max_new_tokens": 8})


def test_a_tokenizer_without_special_tokens(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert (bare.pad_token, bare.eos_token, bare.bos_token) == (None, None, None)
    engine = Engine(tiny_llama, bare, batch_size=3)
    for params in (*PARAMS, {"max_new_tokens": 8, "stop": ["e"]}, {"max_new_tokens": 4, "guidance_scale": 1.5}):
        found = engine.generate(GROUPS["equal up to a prefix"], params)
        usual = Engine(tiny_llama, tiny_tokenizer).generate(GROUPS["equal up to a prefix"], params)
        assert [c.token_ids for c in found] == [c.token_ids for c in usual]


def test_what_cannot_be_tokenized_leaves_nothing_in_flight(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        engine.generate(["How many", None], {"max_new_tokens": 4})  # type: ignore[list-item]
    assert engine.poll() == []
    assert engine.stats.tokens == 0


def test_an_interrupted_call_leaves_nothing_in_flight(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=2)
    calls = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = tiny_llama.model.norm.register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(GROUPS["equal up to a prefix"], {"max_new_tokens": 8})
    finally:
        handle.remove()
    assert engine.poll() == []
    assert_as_alone(engine, tiny_llama, tiny_tokenizer, GROUPS["equal up to a prefix"], {"max_new_tokens": 8})
