"""Thinking models in vLLM: with our logits processor rows are those of our own engine, without it they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmsearch_optuna import Engine
from llmsearch_optuna.backends.vllm.backend import VllmBackend
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.engine.sampling.reasoning import reasoning_span
from tests.backends.vllm_engine import TinyStepEngine
from tests.engine.decoding import drain
from tests.engine.test_thinking import chats
from tests.engine.thinking import thinking_model, thinking_tokenizer

HOT = {"do_sample": True, "top_k": 0, "temperature": 1.4}

STEERED: tuple[dict[str, Any], ...] = (
    {},
    {"thinking_budget": 0},
    {"thinking_budget": 4, **HOT},
    {"thinking_budget": 3, **HOT, "after_thinking": {"temperature": 0.0}},
    {**HOT, "thinking_budget": 5, "after_thinking": {"mirostat_mode": 2, "mirostat_tau": 2.0}},
)


def requests(values: dict[str, Any], **variables: bool) -> list[Request]:
    params = GenerationParams.of({"max_new_tokens": 14, **values}, model_defaults(thinking_model()))
    span = reasoning_span("auto", thinking_tokenizer())
    return [Request("t", row, prompt, params, reasoning=span) for row, prompt in enumerate(chats(**variables)[:4])]


@pytest.mark.parametrize("values", STEERED)
@pytest.mark.parametrize("variables", [{}, {"open_thinking": True}, {"enable_thinking": False}])
def test_rows_are_those_of_our_own_engine(values: dict[str, Any], variables: dict[str, bool]) -> None:
    asked = requests(values, **variables)
    backend = VllmBackend(TinyStepEngine(thinking_model(), thinking_tokenizer(), slots=3))
    assert backend.refusal(asked[0].params) is None
    found = {request.row: completion for request, completion in drain(backend, asked)}  # type: ignore[arg-type]
    own = drain(Engine(thinking_model(), thinking_tokenizer()), asked)
    assert found == {request.row: completion for request, completion in own}
    if "open_thinking" in variables:
        assert all(completion.reasoning is not None for completion in found.values())


def test_without_our_processor_or_the_markers_they_are_refused() -> None:
    backend = VllmBackend(TinyStepEngine(thinking_model(), thinking_tokenizer(), picks_by_row=False))
    assert not backend.steers_thoughts
    for values, name in (({"thinking_budget": 3}, "thinking_budget"), (STEERED[3], "after_thinking.do_sample")):
        problem = backend.refusal(requests(values)[0].params)
        assert problem is not None
        assert name in problem
        assert "logits_processors" in problem
    by_row = VllmBackend(TinyStepEngine(thinking_model(), thinking_tokenizer()))
    by_row.submit([Request("t", 0, "How many", requests({"thinking_budget": 3})[0].params)])
    (failed,) = by_row.poll()
    assert "has to know between which tokens" in str(failed.error)
