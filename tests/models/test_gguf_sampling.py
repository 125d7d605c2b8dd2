"""What a GGUF file recommends becomes the model's defaults, and so the baseline."""

from __future__ import annotations

import doctest
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.models import gguf_sampling
from llmsearch_optuna.models.gguf_sampling import as_generation_params
from llmsearch_optuna.models.loader import load

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from tests.gguf_checkpoint import save_gguf

LOGGER = "llmsearch_optuna.models.gguf_sampling"


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({}, {}),
        ({"temp": 0.0, "top_k": 40}, {"do_sample": False}),
        ({"temp": 0.0, "penalty_repeat": 1.5}, {"do_sample": False, "repetition_penalty": 1.5}),
        ({"penalty_repeat": 1.5}, {"repetition_penalty": 1.5}),
        ({"top_p": 0.8}, {"do_sample": True, "top_p": 0.8}),
        ({"xtc_probability": 0.5, "sequence": "k"}, {}),
    ],
)
def test_llama_cpps_names_become_ours(found: dict[str, Any], taken: dict[str, Any]) -> None:
    assert as_generation_params(found) == taken


def test_the_example_holds() -> None:
    assert doctest.testmod(gguf_sampling).failed == 0


def test_a_files_settings_are_the_models_defaults(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "sequence": "kp"}
    save_gguf(tiny_llama, tmp_path / "tuned.gguf", settings)
    save_gguf(tiny_llama, tmp_path / "plain.gguf")
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        plain = load(tmp_path / "plain.gguf", tmp_path / "tokenizer", device="cpu")
        assert caplog.messages == []
        tuned = load(tmp_path / "tuned.gguf", tmp_path / "tokenizer", device="cpu")
    assert caplog.messages == [
        "tuned.gguf recommends do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=0.1: these are the model's "
        "own defaults, and so the baseline where none is given (not taken over: sequence)"
    ]
    own = Engine(tuned.model, tuned.tokenizer).default_params
    without = Engine(plain.model, plain.tokenizer).default_params
    expected = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1}
    assert own == {**without, **expected}
    assert tuned.description == plain.description  # the weights are the same
