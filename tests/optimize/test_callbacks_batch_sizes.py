"""Batch sizes that fitted are in the study's database, and the next process starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.optimize.run import search
from llmsearch_optuna.search_result import SearchResult
from tests.tiny import SENTENCES

SPACE = {"max_new_tokens": 6, "do_sample": True, "temperature": FloatDistribution(0.5, 1.5)}


class SmallMemory:
    """A device on which so many rows do not fit into one pass of the model."""

    def __init__(self, model: LlamaForCausalLM, most: int) -> None:
        self.failed = self.passed = 0
        self._most = most
        self._handle = model.model.norm.register_forward_hook(self._hook)

    def _hook(self, module: Any, arguments: Any, output: torch.Tensor) -> None:
        if output.shape[0] > self._most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.passed += 1

    def __enter__(self) -> SmallMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def run(folder: Path, engine: Engine, n_trials: int, name: str = "s") -> SearchResult:
    rows = [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(4) for sentence in SENTENCES]
    return search(
        engine,
        rows,
        SPACE,
        reference="answer",
        metric="f1",
        n_trials=n_trials,
        storage=f"sqlite:///{folder}/{name}.db",
        study_name="study",
        progress=False,
    )


def test_the_next_process_starts_from_what_fitted_and_the_tokens_are_the_same(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    plenty = run(tmp_path, Engine(tiny_llama, tiny_tokenizer, batch_size=16), 3, name="plenty")
    with SmallMemory(tiny_llama, most=5) as memory:
        first = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
        run(tmp_path, first, 2)
        assert memory.failed
        assert first.batch_sizes
        assert max(first.batch_sizes.values()) < 16
    second = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    started: list[dict[tuple[int, int], int]] = []
    second.start_from = started.append  # type: ignore[method-assign, assignment]
    small = run(tmp_path, second, 3)
    assert started == [first.batch_sizes]
    for number in range(3):
        assert [r.text for r in small.records(number)] == [r.text for r in plenty.records(number)]


def test_an_engine_that_starts_from_them_does_not_run_out_again(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = (Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=0) for _ in range(2))
    prompts = [f"{sentence} {n}" for n in range(3) for sentence in SENTENCES]
    with SmallMemory(tiny_llama, most=5) as memory:
        expected = first.generate(prompts, {"max_new_tokens": 6})
        assert memory.failed
        memory.failed = 0
        second.start_from(first.batch_sizes)
        assert second.generate(prompts, {"max_new_tokens": 6}) == expected
        assert memory.failed == 0
