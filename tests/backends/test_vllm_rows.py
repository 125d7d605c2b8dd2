"""Rows on vLLM: each prompt is tokenized once, each configuration is looked at once, and a bad row fails alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.backends.vllm import sampling_arguments
from llmsearch_optuna.backends.vllm.backend import VllmBackend
from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT
from llmsearch_optuna.backends.vllm.sampling_arguments import picked_by_row
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.errors import EngineUnavailableError
from llmsearch_optuna.models import tokenization
from tests.backends.vllm_engine import EngineDeadError, TinyStepEngine

TEXTS = ("Anna asks Ben", "The quick brown", "a bad one", "Thank you", "Ben")


class FailingBeams(TinyStepEngine):
    """Its beam search refuses any batch with the token ids of one prompt, or dies before it begins."""

    bad: tuple[int, ...] = ()
    deaths = 0

    def beam_search(self, prompts: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[tuple[int, ...]]:
        if self.deaths:
            self.deaths -= 1
            raise EngineDeadError("core")
        if any(tuple(prompt) == self.bad for prompt in prompts):
            raise ValueError("a prompt that beams cannot have")
        return super().beam_search(prompts, arguments)


def params(model: LlamaForCausalLM, **given: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 4, **given}, model_defaults(model))


def requests(tag: str, asked: GenerationParams, texts: Sequence[str] = TEXTS) -> list[Request]:
    return [Request(tag, row, text, asked) for row, text in enumerate(texts)]


def all_finished(backend: VllmBackend) -> list[Finished]:
    found = []
    while batch := backend.poll():
        found += batch
    return found


def test_a_prompt_is_tokenized_once_for_all_trials_and_for_whoever_counts(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()
    encode = tokenization.encode

    def counting(tokenizer: Any, text: str, *rest: Any) -> Any:
        made[text] += 1
        return encode(tokenizer, text, *rest)

    monkeypatch.setattr(tokenization, "encode", counting)
    backend = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer))
    for trial, asked in enumerate((params(tiny_llama), params(tiny_llama, repetition_penalty=1.2))):
        backend.submit(requests(f"trial {trial}", asked))
        assert all(item.completion for item in all_finished(backend))
    tokens = backend.describe().prompt_tokens
    assert tokens is not None
    expected = encode(tiny_tokenizer, TEXTS[0], True, {})
    assert tokens.ids(TEXTS[0], True, {}) == tuple(expected)
    assert made == dict.fromkeys(TEXTS, 1)


def test_another_tokenizer_tokenizes_anew(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer))
    other = copy.deepcopy(tiny_tokenizer)
    before, after = backend.describe().prompt_tokens, backend.describe(other).prompt_tokens
    assert before is not None
    assert after is not None
    assert (before.tokenizer, after.tokenizer) == (tiny_tokenizer, other)


def test_a_configuration_is_looked_at_once_however_many_rows_it_has(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = params(tiny_llama, response_format={"type": "json_object"})
    assert "response_format" not in picked_by_row(Request("t", 0, "Anna", asked))["extra_args"][ARGUMENT]

    def refused(*_: Any) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(sampling_arguments.GenerationParams, "of", refused)
    first, second = (picked_by_row(Request("t", row, "Anna", asked, occurrence=row)) for row in range(2))
    assert first["structured_outputs"] == second["structured_outputs"] == {"json_object": True}
    assert first["extra_args"] != second["extra_args"]


def test_a_bad_row_with_beams_fails_alone_and_every_row_is_told_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    vllm = FailingBeams(tiny_llama, tiny_tokenizer, slots=16)
    backend = VllmBackend(vllm)
    tokens = backend.describe().prompt_tokens
    assert tokens is not None
    vllm.bad = tokens.ids("a bad one", True, {})
    backend.submit(requests("t", params(tiny_llama, num_beams=2), (*TEXTS, "")))
    found = all_finished(backend)
    assert sorted(item.request.row for item in found) == list(range(6))
    failed = {item.request.row: str(item.error) for item in found if item.error is not None}
    assert failed.keys() == {2, 5}
    assert "a prompt that beams cannot have" in failed[2]
    assert "empty after tokenization" in failed[5]


def test_a_batch_of_beams_that_vllm_dies_on_is_told_once_when_it_is_back(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    vllm = FailingBeams(tiny_llama, tiny_tokenizer, slots=16)
    vllm.deaths = 2
    backend = VllmBackend(vllm)
    backend.submit(requests("t", params(tiny_llama, num_beams=2), ("", *TEXTS)))
    for _ in range(2):
        with pytest.raises(EngineUnavailableError):
            backend.poll()
    found = all_finished(backend)
    assert sorted(item.request.row for item in found) == list(range(6))
    assert backend.tag_stats("t")["tokens"] == 3 * len(TEXTS)
