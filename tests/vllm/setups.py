"""The settings, rows and environment that the tests of vLLM share."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import Engine, search
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.models.loader import load

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

SMALL = {"max_model_len": 512, "enforce_eager": True, "max_num_seqs": 16}
"""Of `vllm.LLM`, so that it starts in half a minute."""

NEEDS_VLLM = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own"),
]

TEXTS = ("The quick brown fox", "Once upon a time there", "In 1969 the first")

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 0.9, "generation_seed": 3},
    "truncated": {"do_sample": True, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.2},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.1, "no_repeat_ngram_size": 2},
    "typical": {"do_sample": True, "top_k": 0, "typical_p": 0.6},
    "mirostat": {"do_sample": True, "mirostat_mode": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.3},
    "minimum": {"do_sample": True, "top_k": 0, "min_new_tokens": 12, "temperature": 1.3},
    "stop": {"stop": [".", "ing"]},
}


def requests(name: str, defaults: Any, **given: Any) -> list[Request]:
    params = GenerationParams.of({"max_new_tokens": 20, **SETTINGS.get(name, {}), **given}, defaults)
    return [Request(name, row, text, params) for row, text in enumerate(TEXTS)]


def own_engine(folder: str) -> Engine:
    loaded = load(folder)
    return Engine(loaded.model, loaded.tokenizer, cache_budget=1 << 28)


def study(model: Any, folder: str, **changed: Any) -> Any:
    """A small study; its metric is the length of the text."""
    return search(
        model,
        [{"prompt": f"Tell me about the number {number}."} for number in range(8)],
        {"max_new_tokens": 12, "do_sample": True, "temperature": FloatDistribution(0.2, 1.0)},
        metric=length,
        n_trials=3,
        storage=f"sqlite:///{folder}/s.db",
        study_name="s",
        pruner="none",
        holdout_replicates=1,
        progress=False,
        **{"holdout": 0.3} | changed,
    )


def length(predictions: list[str], references: list[Any]) -> list[float]:
    return [float(len(prediction)) for prediction in predictions]
