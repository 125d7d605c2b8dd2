"""What a model thought, from servers that separate it and from those that leave it in the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, reasoning_span
from tests.backends.stub_server import StubServer
from tests.engine.thinking import ids_of, thinking_tokenizer


def asked_of(answer: dict[str, Any], span: ReasoningSpan | None, prompt: str = "How many?") -> Completion:
    """The completion of a row whose answer is changed to these fields of its choice."""

    def change(body: dict[str, Any], _: Mapping[str, Any]) -> dict[str, Any]:
        return body | {"choices": [body["choices"][0] | answer]}

    with StubServer(change=change).running() as stub:
        backend = ServerBackend(stub.url)
        params = GenerationParams.of({"max_new_tokens": 30}, backend.default_params)
        backend.submit([replace(Request("t", 0, prompt, params), reasoning=span)])
        (finished,) = backend.poll()
    assert finished.completion is not None
    return finished.completion


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_what_the_server_separates_stays_separate(name: str) -> None:
    message = {"message": {"role": "assistant", "content": "12", name: "5 + 7"}}
    for span in (None, ReasoningSpan("<think>", "</think>")):
        found = asked_of(message, span)
        assert (found.text, found.reasoning) == ("12", "5 + 7")


@pytest.mark.parametrize(
    ("text", "prompt", "answer", "reasoning"),
    [
        ("<think>5 + 7</think>\n\n12", "How many?", "12", "5 + 7"),
        ("5 + 7</think>\n\n12", "How many?<think>\n", "12", "5 + 7"),
        ("5 + 7", "How many?<think>\n", "", "5 + 7"),
        ("12", "How many?", "12", None),
        ("12 <think>", "How many?<think>\n\n</think>\n\n", "12 <think>", None),
    ],
)
def test_what_it_leaves_in_the_text_is_split_by_the_markers(
    text: str, prompt: str, answer: str, reasoning: str | None
) -> None:
    found = asked_of({"text": text}, ReasoningSpan("<think>", "</think>"), prompt)
    assert (found.text, found.reasoning) == (answer, reasoning)
    assert asked_of({"text": text}, None, prompt).text == text


def test_tokens_of_the_thought_are_counted_where_the_server_says_its_tokens() -> None:
    tokenizer = thinking_tokenizer()
    text = "<think>She has</think>seven"
    ids = ids_of(tokenizer, text)
    found = asked_of({"text": text, "token_ids": ids}, reasoning_span("auto", tokenizer))
    assert (found.text, found.reasoning) == ("seven", "She has")
    assert found.reasoning_tokens == len(ids_of(tokenizer, "<think>She has</think>"))
    assert found.answer_tokens == len(ids_of(tokenizer, "seven"))
