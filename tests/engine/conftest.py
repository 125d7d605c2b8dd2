"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine import out_of_memory
from tests.engine.decoding import reference


@pytest.fixture(scope="session")
def expected(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> list[list[tuple[int, ...]]]:
    return reference(tiny_llama, tiny_tokenizer)


@pytest.fixture
def collecting_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes a tenth of a second, and every shortage of memory asks for it."""
    monkeypatch.setattr(out_of_memory, "give_back", lambda device: None)
