"""Prompts, configurations and small helpers that the tests of the engine share."""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams

PROMPTS = (
    "The quick brown fox jumps over the lazy dog",
    "Anna asks Ben whether the train",
    "How many apples",
    "Thank you very much! You are welcome; see you tomorrow, or on 30 May",
    "#Person1#: Could you send me the report? #Person2#:",
    "T",
    "Anna asks Ben whether the cat sleeps",
)


CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 7, "repetition_penalty": 1.3},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"max_new_tokens": 12, "do_sample": True, "temperature": 1.4, "top_k": 20},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 1.1, "top_k": 0, "generation_seed": 5},
    {"max_new_tokens": 10, "do_sample": True, "typical_p": 0.6, "top_k": 0},
    {"max_new_tokens": 8, "num_beams": 3},
    {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.3, "repetition_penalty": 1.2},
    {"max_new_tokens": 8, "num_beams": 2, "do_sample": True, "temperature": 0.9, "top_k": 0},
    {"max_new_tokens": 9, "do_sample": True, "mirostat_mode": 2, "mirostat_tau": 2.0},
)


def tokens_of(engine: Engine, prompts: Sequence[str], params: dict[str, Any]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.generate(prompts, params)]


def reference(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> list[list[tuple[int, ...]]]:
    """Every configuration on a fresh engine that keeps nothing and computes one row at a time."""
    results = []
    for params in CONFIGURATIONS:
        engine = Engine(model, tokenizer, batch_size=1, cache_budget=0, **options)
        results.append(tokens_of(engine, PROMPTS, params))
    return results


def drain(engine: Engine, requests: Sequence[Request]) -> list[tuple[Request, Completion]]:
    engine.submit(requests)
    results = []
    while finished := engine.poll():
        for item in finished:
            assert item.completion is not None, item.error
            results.append((item.request, item.completion))
    assert len(results) == len(requests)
    return results


class FailingForward:
    """Throws an error in chosen forward passes of a model, after they have run and while their tensors are alive."""

    def __init__(self, model: LlamaForCausalLM, when: set[int], error: type[Exception], message: str) -> None:
        self.calls = 0
        self.held: list[weakref.ref[torch.Tensor]] = []
        self._when, self._error, self._message = when, error, message
        self._handle = model.model.norm.register_forward_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        self.calls += 1
        if self.calls in self._when:
            activations = torch.zeros(8)
            self.held.append(weakref.ref(activations))
            try:
                raise ValueError("the allocator below")
            except ValueError as cause:
                raise self._error(self._message) from cause

    def __enter__(self) -> FailingForward:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def shuffled_requests(engine: Engine, choice: Sequence[int], dice: random.Random) -> list[Request]:
    """All prompts under these configurations, each tagged with its configuration's number."""
    requests = [
        Request(index, row, prompt, GenerationParams.of(CONFIGURATIONS[index], engine.default_params))
        for index in choice
        for row, prompt in enumerate(PROMPTS)
    ]
    dice.shuffle(requests)
    return requests


def ended(engine: Engine, requests: Sequence[Request]) -> list[Finished]:
    engine.submit(requests)
    finished = []
    while batch := engine.poll():
        finished += batch
    return finished


def numpy_has_no_memory() -> None:
    np.empty(2**60, dtype=np.uint8)
