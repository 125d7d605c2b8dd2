"""What each shape of an answer means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsearch_optuna.backends.server.failures import RequestFailedError
from llmsearch_optuna.backends.server.reply import UNKNOWN_TOKEN_ID, Reply, read_reply


def answer(message: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    choice = {"message": {"content": "four"} if message is None else message, "finish_reason": "stop"}
    of_choice = ("finish_reason", "stop_reason", "matched_stop", "token_ids")
    choice |= {name: changed.pop(name) for name in of_choice if name in changed}
    return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}, **changed}


def read(body: Any) -> Reply:
    return read_reply(body, max_new_tokens=8)


def test_a_plain_answer() -> None:
    reply = read(answer())
    assert reply.completion.text == "four"
    assert reply.completion.finish_reason == "eos"
    assert reply.completion.prompt_tokens == reply.prompt_tokens == 9
    assert reply.completion.token_ids == (UNKNOWN_TOKEN_ID,) * 2
    assert (reply.completion_tokens, reply.cached_tokens, reply.model) == (2, 0, "m")


def test_token_ids_that_a_server_says_are_kept() -> None:
    reply = read(answer(token_ids=[5, 7, 2]))
    assert reply.completion.token_ids == (5, 7, 2)
    assert reply.completion_tokens == 3


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": ""}, ""),
        ({"content": None, "reasoning_content": "hm"}, ""),
        ({"content": "yes", "reasoning_content": "hm"}, "yes"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None, "refusal": "I will not"}, "I will not"),
        (
            {"content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
            json.dumps([{"name": "f", "arguments": '{"x": 1}'}]),
        ),
        ({"content": "and", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, "and"),
    ],
)
def test_a_message_of_any_shape_has_a_text(message: dict[str, Any], text: str) -> None:
    assert read(answer(message)).completion.text == text


def test_reasoning_is_kept_apart_and_counted() -> None:
    for name in ("reasoning_content", "reasoning"):
        found = read(answer({"content": "yes", name: "hm"}))
        assert found.has_reasoning
        assert (found.completion.text, found.completion.reasoning) == ("yes", "hm")
        assert found.completion.reasoning_tokens == 0  # the server does not say
    assert not read(answer()).has_reasoning
    assert read(answer()).completion.reasoning is None
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 5}}
    from_sglang = {"prompt_tokens": 9, "completion_tokens": 7, "reasoning_tokens": 5}
    for said in (usage, from_sglang):
        counted = read(answer({"content": None, "reasoning_content": "hm"}, usage=said)).completion
        assert (counted.text, counted.reasoning_tokens, counted.answer_tokens) == ("", 5, 2)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"finish_reason": "stop"}, "eos"),
        ({"finish_reason": "stop", "stop_reason": "\n\n"}, "stop"),
        ({"finish_reason": "stop", "stop_reason": 2}, "eos"),
        ({"finish_reason": "stop", "matched_stop": "\n\n"}, "stop"),
        ({"finish_reason": "stop", "matched_stop": 2}, "eos"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "tool_calls"}, "eos"),
        ({"finish_reason": "something new"}, "eos"),
    ],
)
def test_every_finish_reason_has_a_meaning(changed: dict[str, Any], reason: str) -> None:
    assert read(answer(**changed)).completion.finish_reason == reason


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer(finish_reason=None), "not now"),
        (answer(finish_reason="abort"), "not now"),
        (answer(finish_reason="content_filter"), "never"),
        (answer(choices=[]), "not now"),
        (answer(choices=None), "not now"),
        ({"choices": [{"message": None, "finish_reason": "stop"}]}, "not now"),
        ("<html>", "not now"),
        (None, "not now"),
        ({"error": {"message": "overloaded", "code": 502}}, "not now"),
        ({"error": {"message": "bad", "code": 400}}, "never"),
        ({"error": {"message": "no key", "code": 401}}, "stop"),
        ({"error": {"message": "who knows"}}, "not now"),
    ],
)
def test_what_is_no_completion_says_what_it_means(body: Any, kind: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        read(body)
    assert caught.value.failure.kind == kind
    assert caught.value.failure.reason


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 9}, 9),  # with the token that ended the text
        ({"prompt_tokens": 9, "completion_tokens": 10}, None),
        ({"prompt_tokens": 9, "completion_tokens": 0}, None),
        ({"prompt_tokens": 9, "completion_tokens": -1}, None),
        ({"prompt_tokens": 9, "completion_tokens": "2"}, None),
        ({"prompt_tokens": 9, "completion_tokens": True}, None),
        ({"prompt_tokens": 9}, None),
        ({}, None),
        (None, None),
        ("many", None),
    ],
)
def test_a_count_that_cannot_be_is_none(usage: Any, counted: int | None) -> None:
    reply = read(answer(usage=usage))
    assert reply.completion_tokens == counted
    assert len(reply.completion.token_ids) == (counted or 0)


def test_nothing_may_be_generated_in_no_tokens() -> None:
    assert read(answer({"content": ""}, usage={"completion_tokens": 0})).completion_tokens == 0


def test_cached_tokens_are_part_of_the_prompts() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}
    assert read(answer(usage=usage)).cached_tokens == 7
    usage["prompt_tokens_details"] = {"cached_tokens": 70}
    assert read(answer(usage=usage)).cached_tokens == 9


def test_all_beams_of_a_row_are_counted_by_the_server_and_one_by_us() -> None:
    body = answer(usage={"prompt_tokens": 9, "completion_tokens": 24})
    assert read_reply(body, max_new_tokens=8, beams=3).completion_tokens == 8
