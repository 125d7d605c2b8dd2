"""Completions of a thinking model: the thought stands apart, and tokens are those of a model that knows no span."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, reasoning_span
from tests.engine.decoding import PROMPTS, drain
from tests.engine.thinking import ids_of, span_by_hand, thinking_model, thinking_tokenizer

NEW = 24


def chats(**variables: bool) -> list[str]:
    tokenizer = thinking_tokenizer()
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, **variables
            )
        )
        for prompt in PROMPTS
    ]


def is_split_by_hand(completion: Completion, prompt: str, span: ReasoningSpan) -> None:
    tokenizer = thinking_tokenizer()
    tokens = completion.token_ids
    start, began, ended = span_by_hand(ids_of(tokenizer, prompt), tokens, span)
    if start is None or began is None:
        assert completion.reasoning is None
        assert completion.reasoning_tokens == 0
        assert completion.text == tokenizer.decode(tokens, skip_special_tokens=True)
        return
    thought = tokens[began:] if ended is None else tokens[began : ended - len(span.end_ids)]
    answer = () if ended is None else tokens[ended:]
    texts = [tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:start], thought, answer)]
    assert completion.text == (texts[0] + texts[2]).lstrip()
    assert completion.reasoning == texts[1].strip()
    assert completion.reasoning_tokens == (len(tokens) if ended is None else ended) - start
    assert completion.answer_tokens == len(tokens) - completion.reasoning_tokens


@pytest.mark.parametrize("values", [{}, {"do_sample": True, "top_k": 0, "temperature": 1.5}, {"num_beams": 3}])
@pytest.mark.parametrize("variables", [{}, {"open_thinking": True}, {"enable_thinking": False}])
def test_the_thought_stands_apart_and_no_token_changes(values: dict[str, object], variables: dict[str, bool]) -> None:
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=3)
    prompts, params = chats(**variables), {"max_new_tokens": NEW, **values}
    found = engine.generate(prompts, params)
    plain = engine.generate(prompts, params, reasoning=False)
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]
    assert all(c.reasoning is None and c.reasoning_tokens == 0 for c in plain)
    span = reasoning_span("auto", thinking_tokenizer())
    assert span is not None
    for completion, prompt in zip(found, prompts, strict=True):
        is_split_by_hand(completion, prompt, span)


def test_the_model_of_these_tests_thinks_and_answers() -> None:
    """What the tests above compare is there: thoughts that end, that do not end, and rows without one."""
    engine = Engine(thinking_model(), thinking_tokenizer())
    params = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "temperature": 1.5}
    found = [*engine.generate(chats(), params), *engine.generate(chats(open_thinking=True), params)]
    assert any(c.reasoning is None for c in found)
    assert any(c.reasoning is not None and c.text for c in found)
    assert any(c.reasoning and not c.text and c.finish_reason == "length" for c in found)


@settings(max_examples=25)
@given(
    data=st.data(),
    beams=st.sampled_from([1, 1, 2]),
    sampled=st.booleans(),
    seed=st.integers(0, 3),
)
def test_markers_of_several_tokens_are_found_where_a_scan_finds_them(
    data: st.DataObject, beams: int, sampled: bool, seed: int
) -> None:
    """The markers are pieces of what the model writes."""
    engine = Engine(thinking_model(), thinking_tokenizer(), batch_size=4)
    values = {"max_new_tokens": 14, "num_beams": beams, "generation_seed": seed, "do_sample": sampled, "top_k": 0}
    params = GenerationParams.of(values, engine.default_params)
    (written,) = engine.generate([PROMPTS[0]], params)
    tokens = written.token_ids
    first, second = data.draw(st.tuples(st.integers(0, 4), st.integers(2, 10)))
    sizes = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    markers = tokens[first : first + sizes[0]], tokens[first + second : first + second + sizes[1]]
    if not all(markers) or markers[0] == markers[1]:
        return
    span = ReasoningSpan("a", "b", *markers)
    requests = [Request("t", row, prompt, params, reasoning=span) for row, prompt in enumerate(PROMPTS[:2])]
    for request, completion in drain(engine, requests):
        is_split_by_hand(completion, request.prompt, span)
    again = {request.row: completion for request, completion in drain(engine, requests)}
    assert again[0].token_ids == tokens


def test_a_stop_string_ends_a_row_in_its_thought_too() -> None:
    """As in vLLM and SGLang, whose stop strings know of no span."""
    engine = Engine(thinking_model(), thinking_tokenizer())
    (free,) = engine.generate(chats(open_thinking=True)[:1], {"max_new_tokens": NEW})
    assert free.reasoning
    stop = free.reasoning[2:5]
    (stopped,) = engine.generate(chats(open_thinking=True)[:1], {"max_new_tokens": NEW, "stop": stop})
    assert stopped.finish_reason == "stop"
    assert stopped.text == ""
    assert stopped.reasoning == free.reasoning[: free.reasoning.index(stop)].strip()


def test_what_goes_through_generate_is_split_too() -> None:
    engine = Engine(thinking_model(), thinking_tokenizer())
    prompts = chats(open_thinking=True)[:3]
    rowwise = engine.generate(prompts, {"max_new_tokens": NEW})
    plain = engine.generate(prompts, {"max_new_tokens": NEW, "prompt_lookup_num_tokens": 2})
    assert [(c.text, c.reasoning, c.reasoning_tokens) for c in plain] == [
        (c.text, c.reasoning, c.reasoning_tokens) for c in rowwise
    ]
