"""Other sampling behind a thought against a plain loop over one row; what can change there, and how it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan
from llmsearch_optuna.errors import DecodingError, InputError
from tests.engine.decoding import PROMPTS, FailingForward, drain
from tests.engine.test_thinking import chats
from tests.engine.test_thinking_budget import auto_span, complete
from tests.engine.thinking import by_hand, ids_of, thinking_model, thinking_tokenizer

HOT = {"do_sample": True, "top_k": 0, "temperature": 1.4}

CASES: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    ({**HOT, "thinking_budget": 4}, {"temperature": 0.0}, {"do_sample": False}),
    ({**HOT, "thinking_budget": 3}, {"temperature": 0.5, "top_k": 5}, {"temperature": 0.5, "top_k": 5}),
    ({"thinking_budget": 5}, {"do_sample": True, "temperature": 1.5}, {"do_sample": True, "temperature": 1.5}),
    ({"repetition_penalty": 1.5, "thinking_budget": 2}, {"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
    ({**HOT, "generation_seed": 2}, *({"do_sample": False, "repetition_penalty": 1.4},) * 2),
)
"""Parameters, what is given for behind the thought, and what that comes to."""


@pytest.mark.parametrize(("values", "after", "comes_to"), CASES)
@pytest.mark.parametrize("variables", [{}, {"open_thinking": True}, {"enable_thinking": False}])
def test_the_engine_picks_the_answer_as_a_plain_loop_does(
    values: dict[str, Any], after: dict[str, Any], comes_to: dict[str, Any], variables: dict[str, bool]
) -> None:
    params, prompts = complete({**values, "after_thinking": after}), chats(**variables)[:4]
    thinking, answer = complete(values), complete({**values, **comes_to})
    wanted = [
        by_hand(thinking_model(), ids_of(thinking_tokenizer(), prompt), thinking, auto_span(), answer)
        for prompt in prompts
    ]
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=3)
    assert [c.token_ids for c in engine.generate(prompts, params)] == wanted
    assert [c.token_ids for c in engine.generate(prompts[::-1], params)] == wanted[::-1]  # from what is cached
    without = Engine(thinking_model(), thinking_tokenizer(), cache_budget=0, top=5)
    assert [c.token_ids for c in without.generate(prompts, params)] == wanted
    if variables and ("thinking_budget" in values or "enable_thinking" in variables):
        assert [c.token_ids for c in engine.generate(prompts, thinking)] != wanted
    scarce = Engine(thinking_model(), thinking_tokenizer(), batch_size=4)
    with FailingForward(thinking_model(), {3, 4, 8}, torch.OutOfMemoryError, "CUDA out of memory"):
        assert [c.token_ids for c in scarce.generate(prompts, params)] == wanted


@settings(max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    first=st.integers(0, 4),
    second=st.integers(0, 7),
    budget=st.sampled_from([None, 0, 2, 5]),
    temperatures=st.tuples(st.sampled_from([0.7, 1.3]), st.sampled_from([0.0, 0.9])),
    cache=st.sampled_from([0, 30_000, 10**8]),
)
def test_any_markers_and_budgets(
    sizes: tuple[int, int],
    first: int,
    second: int,
    budget: int | None,
    temperatures: tuple[float, float],
    cache: int,
) -> None:
    values = {"do_sample": True, "top_k": 0, "temperature": temperatures[0]}
    ids = ids_of(thinking_tokenizer(), PROMPTS[1])
    free = by_hand(thinking_model(), ids, complete(values), ReasoningSpan("a", "b"))
    markers = free[first : first + sizes[0]], free[second : second + sizes[1]]
    if not all(markers) or markers[0] == markers[1]:
        return
    span, bounded = (
        ReasoningSpan("a", "b", *markers),
        values if budget is None else values | {"thinking_budget": budget},
    )
    behind = {"do_sample": False} if temperatures[1] == 0.0 else {"temperature": temperatures[1]}
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=2, cache_budget=cache)
    params = complete(bounded | {"after_thinking.temperature": temperatures[1]})
    requests = [Request("t", row, prompt, params, reasoning=span) for row, prompt in enumerate(PROMPTS[1:4])]
    for request, completion in drain(engine, requests):
        prompt = ids_of(thinking_tokenizer(), request.prompt)
        wanted = by_hand(thinking_model(), prompt, complete(bounded), span, complete(values | behind))
        assert completion.token_ids == wanted


def test_mirostat_begins_afresh_behind_a_thought() -> None:
    """As if the thought had been a prompt, but for the noise: two engines agree row by row however they are cached."""
    values = {**HOT, "thinking_budget": 3, "after_thinking": {"mirostat_mode": 2, "mirostat_tau": 2.0}}
    params, prompts = complete(values), chats(open_thinking=True)[:4]
    found = Engine(thinking_model(), thinking_tokenizer(), batch_size=3).generate(prompts, params)
    again = Engine(thinking_model(), thinking_tokenizer(), cache_budget=0, batch_size=1).generate(prompts, params)
    assert [c.token_ids for c in found] == [c.token_ids for c in again]
    plain = Engine(thinking_model(), thinking_tokenizer()).generate(prompts, complete({**HOT, "thinking_budget": 3}))
    assert [c.reasoning for c in found] == [c.reasoning for c in plain]
    assert [c.text for c in found] != [c.text for c in plain]


sampling = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.5, 1.0]),
        "top_k": st.sampled_from([0, 5, 50]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "top_n_sigma": st.just(1.0),
        "mirostat_mode": st.sampled_from([0, 2]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "xtc_probability": st.sampled_from([0.0, 0.5]),
        "dry_multiplier": st.sampled_from([0.0, 0.8]),
    },
)


@given(values=sampling, after=sampling | sampling.map(lambda given: given | {"temperature": 0.0}))
def test_what_is_canonical_decodes_the_same(values: dict[str, Any], after: dict[str, Any]) -> None:
    params = GenerationParams.of({"max_new_tokens": 9, **values, "after_thinking": after})
    assert GenerationParams.of(params.canonical) == params
    assert GenerationParams.from_json(params.to_json()) == params
    changes = {name: value for name, value in after.items() if (name, value) != ("temperature", 0.0)}
    if after.get("temperature") == 0.0:
        changes["do_sample"] = False
    base = GenerationParams.of({"max_new_tokens": 9, **values}).canonical
    assert params.answer == GenerationParams.of({**base, **changes})
    assert not any("after_thinking" in name for name in params.to_hugging_face())
    json.dumps(params.canonical)


def test_what_changes_nothing_is_left_out() -> None:
    plain = complete(HOT)
    assert complete({**HOT, "after_thinking": {}}) == plain
    assert complete({**HOT, "after_thinking": {"temperature": 1.4, "top_p": 1.0}}) == plain
    greedy = complete({**HOT, "after_thinking.temperature": 0.0})
    assert greedy["after_thinking.do_sample"] is False
    assert greedy.inert == ()
    assert greedy.answer == complete({})
    assert complete({**HOT, "after_thinking": {"temperature": 0.0, "top_p": 0.9}}).inert == ("after_thinking.top_p",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"after_thinking": {"max_new_tokens": 5}}, "only sampling parameters"),
        ({"after_thinking": {"temperatur": 0.5}}, "Did you mean after_thinking.temperature"),
        ({"after_thinking": {"top_p": 3}}, "after_thinking.top_p=3"),
        ({"after_thinking": 0.5}, "must be a dict"),
        ({"after_thinking": {"top_p": 0.5}, "after_thinking.top_p": 0.5}, "given twice"),
        ({"num_beams": 3, "after_thinking": {"repetition_penalty": 1.2}}, "cannot follow beam"),
        ({"prompt_lookup_num_tokens": 3, "after_thinking": {"repetition_penalty": 1.2}}, "cannot follow assisted"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        complete(values)


def test_rows_that_go_through_generate_are_refused() -> None:
    engine = Engine(thinking_model(), thinking_tokenizer())
    params = complete({"guidance_scale": 1.5, "after_thinking": {"repetition_penalty": 1.2}})
    with pytest.raises(DecodingError, match="after_thinking.repetition_penalty is impossible: model.generate"):
        engine.generate(chats()[:1], params)


def test_it_needs_to_know_the_markers() -> None:
    with pytest.raises(DecodingError, match="after_thinking.temperature has to know between which tokens"):
        Engine(thinking_model(), thinking_tokenizer()).generate(
            chats()[:1], complete({**HOT, "after_thinking.temperature": 0.5}), reasoning=False
        )
