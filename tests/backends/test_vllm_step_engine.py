"""What is read from a `vllm.LLM`, and what a user is told where there is none."""

from __future__ import annotations

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.backends.vllm import is_vllm
from llmsearch_optuna.backends.vllm.sampling_arguments import PROCESSOR
from llmsearch_optuna.backends.vllm.step_engine import LlmStepEngine, is_out_of_memory
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from llmsearch_optuna.optimize.resolve_engine import resolve_engine
from llmsearch_optuna.options import ModelOptions


class LLM:
    """As much of vLLM's as is read at the start."""

    def __init__(self, tokenizer: Any, model: Path, processors: list[Any] | None = None, **config: Any) -> None:
        self._tokenizer = tokenizer
        said = {"eos_token_id": [1, 3], "temperature": 0.6, "do_sample": True, "max_length": 20}
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(
                **{
                    "model": str(model), "revision": None, "dtype": "torch.float32", "quantization": None,
                    "architectures": ["Llama"], "max_model_len": 64, "logits_processors": processors,
                    "hf_config": SimpleNamespace(eos_token_id=1), "try_get_generation_config": lambda: said,
                }
                | config
            ),
            engine_core=SimpleNamespace(resources=SimpleNamespace(engine_dead=False), outputs_queue=queue.Queue()),
            vllm_config=SimpleNamespace(
                scheduler_config=SimpleNamespace(max_num_seqs=5),
                cache_config=SimpleNamespace(enable_prefix_caching=True),
            ),
        )  # fmt: skip

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def generate(self, prompts: Any, sampling_params: Any) -> Any:
        raise AssertionError("rows are requests of the step loop")


LLM.__module__ = "vllm.entrypoints.llm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_an_llm_is_searched_as_it_was_made(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    found = resolve_engine(LLM(tiny_tokenizer, folder, [PROCESSOR]))
    assert found.name == folder.name
    assert found.positions.shared == 64
    assert found.capacity() == 5
    assert found.defaults == {"eos_token_id": [1, 3], "temperature": 0.6, "do_sample": True}
    assert found.description["sampler"] == "row-keyed"
    with pytest.raises(InputError, match=r"dtype='float32' has no effect here: give it to the vllm.LLM"):
        resolve_engine(LLM(tiny_tokenizer, folder), options=ModelOptions(dtype="float32"))


def test_other_weights_another_sampler_or_another_model_are_another_study(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def described(model: Path, processors: list[Any] | None = None) -> Any:
        return LlmStepEngine(LLM(tiny_tokenizer, model, processors)).facts.description

    before = described(folder, [PROCESSOR])
    assert before == described(folder, [PROCESSOR])
    assert before != described(folder)
    assert described(Path("org/one")) != described(Path("org/two"))
    (folder / "model.safetensors").write_bytes(b"others")
    assert before != described(folder, [PROCESSOR])


def test_an_end_token_is_known_where_vllm_leaves_the_models_configuration_out(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    silent = LLM(tiny_tokenizer, folder, try_get_generation_config=lambda: {})
    assert LlmStepEngine(silent).facts.default_params == {"eos_token_id": 1}


def test_an_llm_without_a_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="skip_tokenizer_init"):
        resolve_engine(LLM(None, folder))


def test_a_step_that_waits_for_a_killed_core_is_told(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    llm = LLM(tiny_tokenizer, folder)
    engine = LlmStepEngine(llm)
    core = llm.llm_engine.engine_core
    assert core.outputs_queue.empty()
    core.resources.engine_dead = True
    assert isinstance(core.outputs_queue.get(timeout=10), EngineUnavailableError)
    assert engine.facts.slots == 5


def test_a_name_needs_the_program() -> None:
    pytest.importorskip("torch")
    assert is_vllm("vllm:some/model")
    assert not is_vllm("some/model")
    assert not is_vllm(object())
    if _has_vllm():
        pytest.skip("vLLM is installed")
    with pytest.raises(InputError, match=r"pip install 'llmsearch-optuna\[vllm\]'"):
        resolve_engine("vllm:some/model")


def _has_vllm() -> bool:
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def test_options_that_would_have_no_effect_are_refused() -> None:
    with pytest.raises(InputError, match="vllm_args.*has no effect here: model= is not vLLM's"):
        resolve_engine("some/model", options=ModelOptions(vllm_args={"seed": 1}))
    with pytest.raises(InputError, match="cache_budget=7 has no effect here: vllm_args= says it"):
        resolve_engine("vllm:some/model", options=ModelOptions(cache_budget=7))


def test_memory_that_ran_out_is_recognised() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(ValueError("No available memory for the cache blocks."))
    assert not is_out_of_memory(ValueError("no such folder"))
