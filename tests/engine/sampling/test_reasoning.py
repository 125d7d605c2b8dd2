"""Which tokens are thought and which are the answer: a scan of the whole row decides."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, check_reasoning, reasoning_span
from llmsearch_optuna.errors import InputError
from tests.engine.thinking import WORDS, ids_of, span_by_hand, thinking_tokenizer
from tests.tiny import make_tokenizer

few = st.integers(0, 3)
markers = st.lists(few, min_size=1, max_size=3).map(tuple)


@given(
    prompt=st.lists(few, max_size=6),
    tokens=st.lists(few, max_size=16),
    pair=st.tuples(markers, markers).filter(lambda pair: pair[0] != pair[1]),
    turns=st.frozensets(few, max_size=1),
    blank=st.frozensets(few, max_size=1),
)
def test_a_row_stands_where_a_scan_of_all_its_tokens_says(
    prompt: list[int],
    tokens: list[int],
    pair: tuple[tuple[int, ...], tuple[int, ...]],
    turns: frozenset[int],
    blank: frozenset[int],
) -> None:
    """Token by token, with markers that overlap each other and themselves."""
    span = ReasoningSpan("a", "b", *pair, turn_ids=turns, blank_ids=blank)
    state = span.state(prompt)
    for count in range(len(tokens) + 1):
        start, began, ended = span_by_hand(prompt, tokens[:count], span)
        assert (state.start, state.began, state.ended) == (start, began, ended)
        assert state.is_inside == (began is not None and ended is None)
        assert state.reasoning_tokens == (0 if start is None else (ended or count) - start)
        if count < len(tokens):
            state.push(tokens[count])


def test_auto_finds_the_markers_of_tokenizer_and_template() -> None:
    tokenizer = thinking_tokenizer()
    span = reasoning_span("auto", tokenizer)
    assert span == reasoning_span(None, tokenizer)
    assert span is not None
    assert (span.start, span.end) == WORDS
    assert [span.start_ids, span.end_ids] == [(token,) for token in tokenizer.convert_tokens_to_ids(list(WORDS))]
    assert reasoning_span(False, tokenizer) is None


def test_auto_wants_tokens_and_a_template_that_writes_them() -> None:
    assert reasoning_span("auto", None) is None
    assert reasoning_span("auto", make_tokenizer()) is None
    without_template = copy.deepcopy(thinking_tokenizer())
    without_template.chat_template = None
    assert reasoning_span("auto", without_template) is None
    never_thinks = copy.deepcopy(thinking_tokenizer())
    never_thinks.chat_template = "{{ messages[0]['content'] }}"
    assert reasoning_span("auto", never_thinks) is None
    without_tokens = copy.deepcopy(make_tokenizer())
    without_tokens.chat_template = thinking_tokenizer().chat_template
    assert reasoning_span("auto", without_tokens) is None
    assert reasoning_span(("<think>", "</think>"), without_tokens) is not None


def test_auto_knows_the_channels_of_gpt_oss() -> None:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens(
        [AddedToken(t, special=True) for t in ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")]
    )
    tokenizer.chat_template = "<|start|>user<|message|>…<|end|><|start|>assistant<|channel|>analysis<|message|>"
    span = reasoning_span("auto", tokenizer)
    assert span is not None
    thought = "<|channel|>analysis<|message|>seven or eight?<|end|><|start|>assistant<|channel|>final<|message|>7"
    tokens = ids_of(tokenizer, thought)
    state = span.state(ids_of(tokenizer, "<|start|>user<|message|>How many?<|end|><|start|>assistant"), tokens)
    assert state.began is not None
    assert state.ended is not None
    assert state.start == 0
    assert tokenizer.decode(tokens[state.began : state.ended - len(span.end_ids)]) == "seven or eight?"
    assert tokenizer.decode(tokens[state.ended :]) == "7"


@pytest.mark.parametrize(
    ("end", "opened"),
    [
        ("<think>\n", True),
        ("<think>\nFirst, Anna", True),
        ("<think>\n\n</think>\n\n", False),
        ("", False),
        ("Put it between <think> and </think>.", False),
        ("Say <think> first.<|end|>\n<|turn|>assistant\n", False),
        ("<think>old</think>new<|end|>\n<|turn|>assistant\n<think>", True),
    ],
)
def test_a_prompt_opens_a_span_by_its_end(end: str, opened: bool) -> None:
    tokenizer = thinking_tokenizer()
    span = reasoning_span("auto", tokenizer)
    assert span is not None
    assert span.opened_by(ids_of(tokenizer, f"<|turn|>user\nHow many apples?{end}")) == opened


@pytest.mark.parametrize(
    ("text", "opened", "answer", "reasoning"),
    [
        ("<think>hm</think>\n\n4", False, "4", "hm"),
        ("hm\n</think>\n\n4", True, "4", "hm"),
        ("hm</think>4", False, "4", "hm"),
        ("hm", True, "", "hm"),
        ("<think>hm", False, "", "hm"),
        ("4", False, "4", None),
        ("<think></think>4", False, "4", ""),
        ("\n<think>a</think>b<think>c</think>", False, "b<think>c</think>", "a"),
        ("a</think>b<think>c</think>", True, "b<think>c</think>", "a"),
    ],
)
def test_texts_without_tokens_are_split(text: str, opened: bool, answer: str, reasoning: str | None) -> None:
    assert ReasoningSpan(*WORDS).split_text(text, opened=opened) == (answer, reasoning)


def test_tokens_of_a_span_that_has_ended_are_counted() -> None:
    span = ReasoningSpan("a", "b", (7,), (8, 9))
    assert span.tokens_of([7, 1, 8, 9, 4]) == 4
    assert span.tokens_of([5, 7, 1, 8, 9, 4]) == 4
    assert span.tokens_of([1, 8, 9, 4]) == 3
    assert span.tokens_of([1, 8, 4]) is None
    assert ReasoningSpan("a", "b").tokens_of([1, 8, 9]) is None


@pytest.mark.parametrize("given", [True, "<think>", ("<think>",), ("a", ""), ("a", "a"), ["a", 3], {"a": 1, "b": 2}, 4])
def test_what_is_no_pair_of_markers_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="reasoning="):
        check_reasoning(given)
