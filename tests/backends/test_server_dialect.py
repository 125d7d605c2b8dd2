"""The table of dialects, held against what the servers' own sources say, where these are at hand."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as openai_text
from openai.types.chat import completion_create_params as openai_chat

from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import (
    DIALECTS,
    LLAMA_CPP,
    OLLAMA,
    OPENAI,
    OPENAI_ITSELF,
    SGLANG,
    VLLM,
    Dialect,
)
from llmsearch_optuna.backends.server.request_body import refusal, sampling_fields, server_request, text_refusal
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.types import Chat
from tests.backends.stub_server import StubServer

SGLANG_TEXT = {
    *("frequency_penalty", "ignore_eos", "json_schema", "logit_bias", "max_tokens", "min_p", "min_tokens", "n"),
    *("presence_penalty", "repetition_penalty", "response_format", "return_token_ids", "seed", "stop"),
    *("stop_token_ids", "temperature", "top_k", "top_p"),
}
"""Fields of ``CompletionRequest`` in SGLang's ``srt/entrypoints/openai/protocol.py``, of those that concern us.

It has custom_params, too, whose thinking_budget has no effect beside a text (``require_reasoning`` is the chat's).
"""
SGLANG_CHAT = (SGLANG_TEXT - {"json_schema"}) | {
    *("chat_template_kwargs", "continue_final_message", "custom_params", "reasoning_effort"),
}

OLLAMA_TEXT = {
    *("frequency_penalty", "max_tokens", "presence_penalty", "seed", "stop", "temperature", "top_p"),
}
"""Fields of ``CompletionRequest`` in Ollama's ``openai/openai.go``."""
OLLAMA_CHAT = OLLAMA_TEXT | {"response_format", "reasoning_effort", "tools"}

LLAMA_CPP_SCHEMA = {
    *("adaptive_decay", "adaptive_target", "cache_prompt", "dry_allowed_length", "dry_base", "dry_multiplier"),
    *("dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent", "dynatemp_range", "frequency_penalty"),
    *("grammar", "json_schema", "logit_bias", "max_tokens", "min_p", "mirostat", "mirostat_eta", "mirostat_tau"),
    *("presence_penalty", "repeat_last_n", "repeat_penalty", "seed", "stop", "temperature", "top_k", "top_n_sigma"),
    *("top_p", "typical_p", "xtc_probability", "xtc_threshold"),
}
"""Fields of a completion in llama.cpp's ``tools/server/server-schema.cpp``; max_tokens is an alias there."""
LLAMA_CPP_CHAT = LLAMA_CPP_SCHEMA | {"response_format", "thinking_budget_tokens", "chat_template_kwargs", "tools"}

OPENAI_TEXT_FIELDS = set(openai_text.CompletionCreateParamsNonStreaming.__annotations__) | set(
    openai_text.CompletionCreateParamsBase.__annotations__
)
OPENAI_CHAT_FIELDS = set(openai_chat.CompletionCreateParamsBase.__annotations__)


@pytest.mark.parametrize(
    ("dialect", "text", "chat"),
    [
        (SGLANG, SGLANG_TEXT, SGLANG_CHAT),
        (OLLAMA, OLLAMA_TEXT, OLLAMA_CHAT),
        (LLAMA_CPP, LLAMA_CPP_SCHEMA, LLAMA_CPP_CHAT),
        (OPENAI, OPENAI_TEXT_FIELDS, OPENAI_CHAT_FIELDS),
        (OPENAI_ITSELF, OPENAI_TEXT_FIELDS, OPENAI_CHAT_FIELDS),
    ],
    ids=["sglang", "ollama", "llama.cpp", "openai", "openai itself"],
)
def test_every_field_is_one_that_the_server_reads(dialect: Dialect, text: set[str], chat: set[str]) -> None:
    beside = {*dialect.neutral, *dialect.greedy, *dialect.constant}
    asked_as_text = {field for name, field in dialect.fields.items() if name not in dialect.chat_only}
    assert asked_as_text | beside <= text
    assert {dialect.chat_names.get(field, field) for field in {*dialect.fields.values(), *beside}} <= chat
    ignored = {dialect.fields[name] for name in dialect.chat_only} & text
    assert ignored == set()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_what_only_chats_take_is_refused_beside_a_text(dialect: Dialect) -> None:
    known = {"reasoning_effort": "low", "response_format": {"type": "json_object"}, "thinking_budget": 4}
    params = GenerationParams.of({"max_new_tokens": 8, **known})
    text = Request("t", 0, "hello", params)
    chat = Request("t", 0, "hello", params, chat=Chat(({"role": "user", "content": "hello"},)))
    assert text_refusal(dialect, chat) is None
    said = text_refusal(dialect, text) or ""
    assert all((name in said) == (name in dialect.chat_only) for name in known)


def test_a_row_that_would_be_asked_without_its_form_fails_instead() -> None:
    with StubServer(owner="llamacpp").running() as stub:
        backend = ServerBackend(stub.url)
        params = GenerationParams.of({"max_new_tokens": 8, "response_format": {"type": "json_object"}})
        backend.submit([Request("t", 0, "hello", params)])
        (finished,) = backend.poll()
        assert finished.completion is None
        assert "takes response_format with messages only" in str(finished.error)
        assert stub.bodies() == []


def test_openai_itself_is_told_no_defaults_and_counts_thoughts_within_the_limit() -> None:
    params = GenerationParams.of({"max_new_tokens": 8, "reasoning_effort": "low"}, OPENAI_ITSELF.defaults)
    chat = Chat(({"role": "user", "content": "hello"},))
    asked = server_request(OPENAI_ITSELF, "m", Request("t", 0, "hello", params, chat=chat), None).body
    assert set(asked) == {"model", "messages", "max_completion_tokens", "reasoning_effort", "seed"}
    assert asked["max_completion_tokens"] == 8
    text = server_request(OPENAI_ITSELF, "m", Request("t", 0, "hello", params), None).body
    assert text["max_tokens"] == 8


def test_budgets_of_thoughts_have_the_servers_name() -> None:
    params = GenerationParams.of({"max_new_tokens": 8, "thinking_budget": 5})
    assert sampling_fields(VLLM, params)["thinking_token_budget"] == 5
    assert sampling_fields(LLAMA_CPP, params)["thinking_budget_tokens"] == 5
    assert sampling_fields(SGLANG, params)["custom_params"] == {"thinking_budget": 5}
    for dialect in (OLLAMA, OPENAI):
        assert "thinking_budget (vllm, sglang, llama.cpp do)" in (refusal(dialect, params) or "")


SHOWN = 'stop                           "<|im_end|>"\ntop_k                          20\ntemperature    0.6\n'


@pytest.mark.parametrize(
    ("parameters", "fixed", "baseline"),
    [
        (None, {"top_k": 40}, {"top_k": 40}),
        ("", {"top_k": 40}, {"top_k": 40}),
        (SHOWN, {"top_k": 20}, {"top_k": 20}),
        (SHOWN + "repeat_penalty 1", {"top_k": 20, "repetition_penalty": 1}, {"top_k": 20}),
        (
            "repeat_penalty  1.05\npresence_penalty 1.5\nmin_p 0.02",
            {"top_k": 40, "min_p": 0.02, "repetition_penalty": 1.05, "repeat_last_n": 64},
            {"top_k": 40, "min_p": 0.02, "repetition_penalty": 1.05, "repeat_last_n": 64, "presence_penalty": 1.5},
        ),
    ],
)
def test_a_model_of_ollama_brings_parameters_that_no_request_changes(
    parameters: str | None, fixed: dict[str, Any], baseline: dict[str, Any]
) -> None:
    pages: dict[str, Any] = {"/api/version": {"version": "0.20"}}
    if parameters is not None:
        pages["/api/show"] = {"parameters": parameters}
    with StubServer(owner="library", pages=pages).running() as stub:
        backend = ServerBackend(stub.url)
    assert dict(backend.identity.dialect.unchangeable) == fixed
    found = GenerationParams.of({"max_new_tokens": 8}, backend.default_params)
    assert {name: found[name] for name in baseline} == baseline
    assert "temperature" not in found  # 1, whatever the model says, where a client is silent
    assert backend.refusal(found) is None
    hot = GenerationParams.of({"max_new_tokens": 8, "top_k": 33}, backend.default_params)
    assert f"applies {fixed['top_k']}, not top_k=33" in str(backend.refusal(hot))
