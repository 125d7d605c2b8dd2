"""vLLM in the same process as an engine: all trials' rows as requests of its step loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsearch_optuna.backends.vllm.backend import VllmBackend
from llmsearch_optuna.backends.vllm.step_engine import VLLM_PREFIX, LlmStepEngine, is_llm, load_llm

__all__ = ["VllmBackend", "is_vllm", "open_vllm"]


def is_vllm(model: object) -> bool:
    """Whether what a user calls a model is vLLM's: a `vllm.LLM`, or ``"vllm:"`` before a folder or hub id."""
    return model.startswith(VLLM_PREFIX) if isinstance(model, str) else is_llm(model)


def open_vllm(model: Any, *, tokenizer_decode_args: Mapping[str, Any] | None = None, **load: Any) -> VllmBackend:
    """Return the engine that decodes by vLLM.

    Args:
        model: A `vllm.LLM`, or ``"vllm:"`` and a folder or hub id, which is loaded (see `load_llm` for ``load``).
        tokenizer_decode_args: What the tokenizer's ``decode`` is called with.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
        EngineUnavailableError: There is no room for it now.
    """
    llm = load_llm(model.removeprefix(VLLM_PREFIX), **load) if isinstance(model, str) else model
    return VllmBackend(LlmStepEngine(llm), tokenizer_decode_args)
