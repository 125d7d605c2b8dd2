"""What a vLLM server that has our logits processor is asked, and what it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmsearch_optuna.backends.server.dialect import OLLAMA, OPENAI, TRANSFORMERS, VLLM, VLLM_BY_ROW
from llmsearch_optuna.backends.server.request_body import refusal, server_request
from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, RowSettings
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan


def asked(**given: Any) -> Request:
    return Request("t", 0, "text", GenerationParams.of({"max_new_tokens": 9, **given}), occurrence=2, replicate=1)


def test_the_server_is_left_nothing_to_pick() -> None:
    request = asked(
        do_sample=True, temperature=0.3, typical_p=0.5, repetition_penalty=1.2, stop=["x"], eos_token_id=[2]
    )
    body = dict(server_request(VLLM_BY_ROW, "m", request, [5, 6]).body)
    assert RowSettings.from_json(body.pop("vllm_xargs")[ARGUMENT]) == RowSettings(request.params, 2, 1)
    assert body == {
        "model": "m", "prompt": [5, 6], "max_tokens": 9, "stop": ["x"], "stop_token_ids": [2], "ignore_eos": True,
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True,
    }  # fmt: skip


def test_ends_that_are_not_known_here_are_left_to_the_server() -> None:
    body = server_request(VLLM_BY_ROW, "m", asked(stop_token_sequences=[[7]]), None).body
    assert "ignore_eos" not in body
    assert body["stop_token_ids"] == [7]


def test_beams_go_as_to_any_vllm_server() -> None:
    request = asked(num_beams=3)
    assert server_request(VLLM_BY_ROW, "m", request, None) == server_request(VLLM, "m", request, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"do_sample": True, "mirostat_mode": 2}, None),
        ({"no_repeat_ngram_size": 3, "presence_penalty": 1.0}, None),
        ({"dry_multiplier": 1.0}, "does not know dry_multiplier"),
        ({"stop_token_sequences": [[7, 8]]}, "only for single tokens"),
        ({"num_beams": 2}, None),
    ],
)
def test_it_takes_what_our_own_engine_takes(given: dict[str, Any], said: str | None) -> None:
    found = refusal(VLLM_BY_ROW, asked(**given).params)
    assert (found is None) == (said is None)
    assert said is None or (found is not None and said in found)


SPAN = ReasoningSpan("<think>", "</think>", (7,), (8, 9), frozenset({1, 2}), frozenset({5}))


def test_our_processor_is_told_where_the_model_thinks_where_it_has_to_know() -> None:
    steered = replace(asked(thinking_budget=3, after_thinking={"repetition_penalty": 1.3}), reasoning=SPAN)
    body = server_request(VLLM_BY_ROW, "m", steered, None).body
    sent = RowSettings.from_json(body["vllm_xargs"][ARGUMENT])
    assert sent == RowSettings(steered.params, 2, 1, SPAN)
    assert "thinking_token_budget" not in body
    plain = replace(asked(), reasoning=SPAN)
    assert (
        RowSettings.from_json(server_request(VLLM_BY_ROW, "m", plain, None).body["vllm_xargs"][ARGUMENT]).reasoning
        is None
    )
    untold = RowSettings(steered.params, 2, 1)
    with pytest.raises(ValueError, match="has to know between which tokens"):
        RowSettings.from_json(untold.to_json())


def test_the_budget_has_the_servers_own_name_where_it_has_one() -> None:
    request = asked(thinking_budget=3)
    assert refusal(VLLM, request.params) is None
    assert server_request(VLLM, "m", request, None).body["thinking_token_budget"] == 3
    for dialect in (OLLAMA, OPENAI, TRANSFORMERS):
        told = f"{dialect.name} does not take thinking_budget (vllm, sglang, llama.cpp do)"
        assert refusal(dialect, request.params) == told
    after = asked(after_thinking={"repetition_penalty": 1.3}).params
    assert refusal(VLLM, after) == "vllm does not take after_thinking.repetition_penalty (no server does)"
