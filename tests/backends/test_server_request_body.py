"""What a row under some parameters is asked as, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.backends.server.dialect import (
    DIALECTS,
    LLAMA_CPP,
    OLLAMA,
    OPENAI,
    SGLANG,
    TRANSFORMERS,
    VLLM,
    Dialect,
)
from llmsearch_optuna.backends.server.request_body import refusal, row_seed, sampling_fields, server_request
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.types import Chat

EVERY = tuple(DIALECTS.values())


def params(dialect: Dialect, **values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 8, **values}, dialect.defaults)


def request(values: GenerationParams, **changed: Any) -> Request:
    return Request("t", 0, "hello", values, **changed)


@pytest.mark.parametrize("dialect", EVERY, ids=lambda d: d.name)
def test_greedy_is_temperature_zero_or_no_sampling(dialect: Dialect) -> None:
    fields = sampling_fields(dialect, params(dialect, do_sample=False))
    if dialect.generation_config:
        assert json.loads(fields["generation_config"])["do_sample"] is False
    else:
        assert fields["temperature"] == 0.0
    assert fields["max_tokens"] == 8
    assert "seed" not in server_request(dialect, "m", request(params(dialect, do_sample=False)), None).body


@pytest.mark.parametrize("given", [{}, {"dry_penalty_last_n": -1}, {"dry_penalty_last_n": 64}])
def test_llama_cpp_refuses_minus_one_for_the_whole_context(given: dict[str, int]) -> None:
    fields = sampling_fields(LLAMA_CPP, params(LLAMA_CPP, do_sample=True, dry_multiplier=0.5, **given))
    last = given.get("dry_penalty_last_n", -1)
    assert fields["dry_penalty_last_n"] == (last if last > 0 else 2**20)


@pytest.mark.parametrize("dialect", EVERY, ids=lambda d: d.name)
def test_what_a_configuration_leaves_out_is_switched_off_and_not_left_to_the_server(dialect: Dialect) -> None:
    off = {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "top_k": dialect.unchangeable.get("top_k", 0),
    }
    fields = sampling_fields(dialect, params(dialect, **off))
    if dialect.generation_config:
        fields |= json.loads(fields.pop("generation_config"))
        assert fields["do_sample"] is True
    for name, value in dialect.neutral.items():
        assert fields[name] == value
    assert fields["temperature"] == 1.0
    assert fields["top_p"] == 1.0


def test_names_are_those_of_the_server() -> None:
    values = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.2, "mirostat_mode": 0, "top_k": 5}
    assert sampling_fields(LLAMA_CPP, params(LLAMA_CPP, **values))["repeat_penalty"] == 1.2
    assert sampling_fields(VLLM, params(VLLM, **values))["repetition_penalty"] == 1.2
    inside = json.loads(sampling_fields(TRANSFORMERS, params(TRANSFORMERS, **values))["generation_config"])
    assert inside["repetition_penalty"] == 1.2
    assert inside["temperature"] == 0.7
    mirostat = sampling_fields(LLAMA_CPP, params(LLAMA_CPP, do_sample=True, mirostat_mode=2, mirostat_tau=4.0))
    assert (mirostat["mirostat"], mirostat["mirostat_tau"], mirostat["top_k"]) == (2, 4.0, 0)


def test_a_server_whose_end_token_is_not_known_is_asked_for_a_least_length() -> None:
    assert sampling_fields(VLLM, params(VLLM, do_sample=True, min_new_tokens=5))["min_tokens"] == 5


def test_off_is_written_as_the_server_writes_it() -> None:
    assert sampling_fields(SGLANG, params(SGLANG, do_sample=True))["top_k"] == -1
    assert sampling_fields(VLLM, params(VLLM, do_sample=True))["top_k"] == 0


def test_beams_biases_and_stops() -> None:
    values = {"num_beams": 3, "length_penalty": 0.5, "stop": ["\n"], "stop_token_sequences": [[2]]}
    fields = sampling_fields(VLLM, params(VLLM, do_sample=False, sequence_bias=[[[7], 2.5]], **values))
    assert fields["use_beam_search"] is True
    assert (fields["n"], fields["length_penalty"], fields["stop"]) == (3, 0.5, ["\n"])
    assert fields["stop_token_ids"] == [2]
    assert fields["logit_bias"] == {"7": 2.5}


@pytest.mark.parametrize(
    ("dialect", "values", "told"),
    [
        (VLLM, {"do_sample": True, "typical_p": 0.9}, "vllm does not take typical_p (llama.cpp, transformers do)"),
        (LLAMA_CPP, {"num_beams": 2}, "llama.cpp does not take num_beams (vllm, transformers do)"),
        (
            OPENAI,
            {"do_sample": True, "top_k": 5},
            "openai does not take top_k (vllm, sglang, llama.cpp, transformers do)",
        ),
        (OPENAI, {"stop": list("abcde")}, "openai takes 4 stop strings at most, and there are 5"),
        (VLLM, {"tfs": 0.9, "do_sample": True}, "vllm does not take tfs (no server does)"),
        (OLLAMA, {"do_sample": True, "top_k": 50}, "ollama takes no top_k and applies 40, not top_k=50"),
        (VLLM, {"stop_token_sequences": [[1, 2]]}, "vllm takes stop_token_sequences only for single tokens"),
        (TRANSFORMERS, {"presence_penalty": 0.5}, "transformers does not take presence_penalty (vllm,"),
    ],
)
def test_what_a_server_does_not_take_is_refused_with_the_servers_that_do(
    dialect: Dialect, values: dict[str, Any], told: str
) -> None:
    assert told in (refusal(dialect, params(dialect, **values)) or "")


@pytest.mark.parametrize("dialect", EVERY, ids=lambda d: d.name)
def test_what_a_server_does_by_itself_can_be_said_to_it(dialect: Dialect) -> None:
    assert refusal(dialect, params(dialect)) is None
    assert refusal(dialect, params(dialect, do_sample=False)) is None


def test_messages_go_as_messages_and_text_as_text() -> None:
    chat = Chat(({"role": "user", "content": "hi"},), {"enable_thinking": False})
    asked = server_request(VLLM, "m", request(params(VLLM), chat=chat), None)
    assert asked.path == "/chat/completions"
    assert asked.body["messages"] == [{"role": "user", "content": "hi"}]
    assert asked.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "tools" not in asked.body
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with_tools = Chat(chat.messages, {"tools": tools})
    asked = server_request(VLLM, "m", request(params(VLLM), chat=with_tools), None)
    assert asked.body["tools"] == tools
    assert "chat_template_kwargs" not in asked.body
    assert "add_generation_prompt" not in asked.body
    begun = Chat((*chat.messages, {"role": "assistant", "content": "Well"}))
    assert server_request(VLLM, "m", request(params(VLLM), chat=begun), None).body["continue_final_message"] is True
    text = server_request(VLLM, "m", request(params(VLLM)), None)
    assert (text.path, text.body["prompt"]) == ("/completions", "hello")
    assert server_request(VLLM, "m", request(params(VLLM)), (1, 2)).body["prompt"] == [1, 2]


@given(
    first=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 9), st.integers(0, 9), st.text(max_size=5)),
    second=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 9), st.integers(0, 9), st.text(max_size=5)),
)
def test_every_row_and_replicate_has_a_seed_of_its_own(
    first: tuple[int, int, int, str], second: tuple[int, int, int, str]
) -> None:
    seeds = []
    for seed, occurrence, replicate, prompt in (first, second):
        values = params(VLLM, do_sample=True, generation_seed=seed)
        made = Request("t", 0, prompt, values, occurrence=occurrence, replicate=replicate)
        seeds.append(row_seed(made))
        assert row_seed(made) == seeds[-1]
        assert 0 <= seeds[-1] < 2**31
    assert (seeds[0] == seeds[1]) == (first == second)


def test_the_seed_does_not_depend_on_the_other_parameters() -> None:
    cold, hot = (params(VLLM, do_sample=True, temperature=t) for t in (0.1, 1.5))
    assert row_seed(request(cold)) == row_seed(request(hot))
