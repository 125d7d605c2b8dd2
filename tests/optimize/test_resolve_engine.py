"""What may be called a model, what is said about it, and that nothing is ignored quietly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import score
from llmsearch_optuna.backends.custom import CustomBackend
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.loader import LoadedModel
from llmsearch_optuna.optimize.resolve_engine import resolve_engine
from llmsearch_optuna.task.task import Task
from tests.engine_work import rows_per_step
from tests.oracle import hf_generate
from tests.synthetic import ShuffledServer, TextEngine


def test_what_says_nothing_is_no_argument(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    nothing = {"batch_size": "auto", "cache_budget": "auto", "tokenizer_decode_args": None}
    silent = {"device": None, "dtype": "auto", "trust_remote_code": False, "adapter": None}
    for model in (TextEngine(), ShuffledServer(TextEngine(), 0)):
        backend = resolve_engine(model, options=nothing | silent).backend
        assert isinstance(backend, CustomBackend)
        assert backend.custom is model
    engine = Engine(tiny_llama, tiny_tokenizer)
    assert resolve_engine(engine, options=nothing | silent).backend is engine


@pytest.mark.parametrize(
    ("kind", "engine", "loading", "said"),
    [
        ("engine", {"cache_budget": 0}, {}, "cache_budget=0 has no effect here: model= is an engine already"),
        ("engine", {}, {"adapter": "a", "dtype": "float32"}, "dtype='float32', adapter='a' has no effect here"),
        ("server", {"batch_size": 3}, {}, "batch_size=3 has no effect here: model= is an engine already"),
        ("one method", {"tokenizer_decode_args": {"x": 1}}, {}, "model= decodes by its own generate"),
        ("model", {}, {"dtype": "float16"}, "dtype='float16' has no effect here: model= is loaded already"),
        (
            "model",
            {},
            {"device_map": "auto", "gguf_file": "x.gguf"},
            "gguf_file='x.gguf', device_map='auto' has no effect here",
        ),
    ],
)
def test_an_argument_that_could_have_no_effect_is_refused(
    kind: str,
    engine: dict[str, Any],
    loading: dict[str, Any],
    said: str,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = {
        "engine": lambda: Engine(tiny_llama, tiny_tokenizer),
        "server": lambda: ShuffledServer(TextEngine(), 0),
        "one method": TextEngine,
        "model": lambda: tiny_llama,
    }[kind]()
    with pytest.raises(InputError) as caught:
        resolve_engine(model, tiny_tokenizer, engine | loading)
    assert said in str(caught.value)


def test_everything_about_loading_reaches_the_loader(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def load(model: Any, tokenizer: Any = None, **loading: Any) -> LoadedModel:
        seen.update(loading, model=model)
        return LoadedModel(tiny_llama, tiny_tokenizer, "tiny")

    monkeypatch.setattr("llmsearch_optuna.models.loader.load", load)
    loading = {
        "device": "cpu", "device_map": "auto", "dtype": "float32", "revision": "v1", "adapter": "folder",
        "gguf_file": "q.gguf", "trust_remote_code": True,
    }  # fmt: skip
    decode_args = {"skip_special_tokens": False}
    engine = {"batch_size": 3, "cache_budget": 10**6, "tokenizer_decode_args": decode_args}
    served = resolve_engine("some/model", options=engine | loading)
    assert seen == {"model": "some/model", **loading}
    served.backend.generate([f"Anna asks Ben {n} times" for n in range(7)], {"max_new_tokens": 4, "min_new_tokens": 4})
    assert 1 < rows_per_step(served.backend.stats) <= 3
    assert served.backend.tokenizer_decode_args == decode_args
    assert served.description["tokenizer_decode_args"] == decode_args
    assert "tokenizer_decode_args" not in resolve_engine(tiny_llama, tiny_tokenizer).description


def test_an_engine_of_ones_own_counts_by_how_it_decodes_text(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, tokenizer_decode_args={"skip_special_tokens": False})
    plain = resolve_engine(Engine(tiny_llama, tiny_tokenizer)).description
    assert resolve_engine(engine).description == {**plain, "tokenizer_decode_args": {"skip_special_tokens": False}}


def test_a_peft_adapter_decodes_as_peft_itself(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(tiny_llama), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    rows = [{"text": "How many apples", "answer": "7"}, {"text": "Anna asks Ben", "answer": "x"}]
    task = Task(rows, prompt="{text}", reference="answer", metric="contains")
    params = {"max_new_tokens": 8}
    base = score(str(tmp_path / "base"), task, params)
    found = score(str(tmp_path / "base"), task, params, adapter=str(tmp_path / "adapter"))
    for row, completion in zip(rows, found.completions, strict=True):
        ids = tiny_tokenizer(row["text"])["input_ids"]
        assert list(completion.token_ids) == hf_generate(adapted.get_base_model(), ids, **params)
    assert [c.token_ids for c in found.completions] != [c.token_ids for c in base.completions]


def test_what_is_no_model_is_shown_in_short() -> None:
    rows = [{"dialogue": "x" * 50}] * 50
    with pytest.raises(InputError, match=r"^model=\[\{'dialogue': 'x+.{0,200}… cannot be searched: give a Hugging"):
        resolve_engine(rows)


def test_a_batch_size_is_a_number(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="batch_size is '16'; give"):
        resolve_engine(tiny_llama, tiny_tokenizer, {"batch_size": "16"})
