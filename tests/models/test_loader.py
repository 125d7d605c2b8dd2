"""Models and tokenizers, however they are brought; what is missing is named, and nothing of the user's is changed."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.fingerprint.weights import hash_tokenizer, hash_weights
from llmsearch_optuna.models.loader import load, pick_device, ready_tokenizer
from llmsearch_optuna.models.tokenization import Positions


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def without(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest))


def test_a_model_is_taken_as_it_is(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load(tiny_llama, tiny_tokenizer)
    assert loaded.model is tiny_llama
    assert not loaded.model.training
    assert loaded.positions == Positions(shared=512)
    assert loaded.name == "LlamaForCausalLM"


def test_a_folder_is_loaded_with_its_tokenizer(folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    loaded = load(folder, device="cpu")
    assert loaded.name == "tiny"
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer("Anna")["input_ids"]
    assert loaded.fingerprint == hash_weights(tiny_llama)
    assert load(str(folder), device="cpu").description == loaded.description
    json.dumps(loaded.description)


def test_a_cpu_decodes_in_float32_unless_told_otherwise(folder: Path, tmp_path: Path, tiny_llama: Any) -> None:
    copy.deepcopy(tiny_llama).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path, str(folder), device="cpu").model.dtype == torch.float32
    assert load(tmp_path, str(folder), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_a_model_that_is_spread_stays_where_its_map_puts_it(
    folder: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.rotary_emb": "cpu"}
    places |= {"model.norm": "cpu", "lm_head": "cpu"}
    loaded = load(folder, device_map=places)
    assert loaded.model.hf_device_map == places
    assert loaded.model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    taken = load(loaded.model)  # loaded by its owner: left as it is
    assert taken.model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    prompts, params = ["How many apples", "Anna asks"], {"max_new_tokens": 8}
    wanted = Engine(tiny_llama, tiny_tokenizer).generate(prompts, params)
    assert Engine(taken.model, taken.tokenizer).generate(prompts, params) == wanted


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load(folder, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_encoder_decoder_model_pads_its_prompts_on_the_right(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = T5Config(vocab_size=199, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu")
    assert type(loaded.model).__name__ == "T5ForConditionalGeneration"
    assert loaded.tokenizer.padding_side == "right"
    assert loaded.positions == Positions()


def test_the_inner_model_of_a_wrapper_decodes(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    class AutoAWQ(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_llama

        def generate(self) -> None:
            raise AssertionError("the wrapper does not decode")

    class Peft:
        def __init__(self, is_prompt_learning: bool) -> None:
            self.peft_config = {"default": SimpleNamespace(is_prompt_learning=is_prompt_learning)}

        def get_base_model(self) -> Any:
            return tiny_llama

    assert load(AutoAWQ(), tiny_tokenizer).model is tiny_llama
    assert load(Peft(is_prompt_learning=False), tiny_tokenizer).model is tiny_llama
    with pytest.raises(InputError, match="prompt-tuning"):
        load(Peft(is_prompt_learning=True), tiny_tokenizer)


def test_a_tokenizer_without_pad_or_padded_right_is_handled_on_a_copy(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    given = copy.deepcopy(tiny_tokenizer)
    given.pad_token = None
    given.padding_side = "right"
    ready = load(tiny_llama, given).tokenizer
    assert (given.pad_token, given.padding_side) == (None, "right")
    assert (ready.pad_token, ready.padding_side) == ("</s>", "left")
    batch = ready(["Anna", "Anna asks Ben"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1


def test_a_tokenizer_without_any_special_token_gets_a_pad_too(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert ready_tokenizer(bare, is_encoder_decoder=False).pad_token_id == 0


def test_a_tokenizer_may_be_named(folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    assert load(tiny_llama, folder).tokenizer("Anna")["input_ids"]
    with pytest.raises(InputError, match="does not say where its tokenizer is; give tokenizer="):
        load(LlamaForCausalLM(copy.deepcopy(tiny_llama.config)))
    with pytest.raises(InputError, match="tokenizer of type int"):
        load(tiny_llama, 5)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer .* \(give tokenizer= to take another\) cannot be loaded"):
        load(tmp_path, device="cpu")


def test_a_tokenizer_that_is_too_large_is_warned_about(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    large = copy.deepcopy(tiny_tokenizer)
    large.add_tokens([f"new{number}" for number in range(300)])
    load(tiny_llama, large)
    assert "is it the model's own?" in caplog.text


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("/nowhere/at/all", "there is no such folder or file"),
        ("./missing", "there is no such folder or file"),
        ("missing.gguf", "cannot be loaded"),
        ("nobody/nothing", r"(?s)model='nobody/nothing' cannot be loaded.*Without a network give the folder"),
        (5, "model of type int cannot generate text"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_do(model: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load(model)


def test_an_empty_folder_and_a_model_without_a_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 8}')
    with pytest.raises(InputError, match="Causal and encoder-decoder language models"):
        load(tmp_path)


def test_code_of_a_checkpoint_runs_only_when_allowed(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange.py").write_text("raise SystemExit('code of the checkpoint ran')")
    with pytest.raises(InputError, match="allow it with trust_remote_code=True"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("method", "packages", "command"),
    [
        ("awq", {"gptqmodel", "awq"}, r"llmsearch-optuna\[awq\]"),
        ("gptq", {"gptqmodel"}, "pip install --no-build-isolation gptqmodel, and pip install accelerate optimum"),
        ("bitsandbytes", {"bitsandbytes"}, r"llmsearch-optuna\[bitsandbytes\]"),
    ],
)
def test_packed_checkpoints_name_the_package_they_need(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, packages: set[str], command: str
) -> None:
    without(packages, monkeypatch)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"needs the package .* which is not installed: .*{command}"):
        load(tmp_path)


def test_gguf_files_and_adapters_name_the_package_they_need(
    tmp_path: Path, folder: Path, tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without({"gguf", "peft"}, monkeypatch)
    (tmp_path / "model.gguf").write_bytes(b"")
    for given in (tmp_path / "model.gguf", tmp_path):
        with pytest.raises(InputError, match=r"needs the package gguf.*llmsearch-optuna\[gguf\]"):
            load(given, gguf_file="model.gguf" if given is tmp_path else None)
    with pytest.raises(InputError, match=r"adapter='lora' needs the package peft.*llmsearch-optuna\[peft\]"):
        load(tiny_llama, tiny_tokenizer, adapter="lora")


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path, folder: Path, tiny_tokenizer: Any) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    with pytest.raises(InputError, match=r"is a PEFT adapter: .* \(its settings name 'some/base'\), and adapter="):
        load(tmp_path)
    with pytest.raises(InputError, match=r"adapter='\./nowhere': there is no such folder"):
        load(folder, adapter="./nowhere", device="cpu")


def test_the_fingerprint_notices_one_changed_weight(tiny_llama: LlamaForCausalLM) -> None:
    changed = copy.deepcopy(tiny_llama)
    assert hash_weights(changed) == hash_weights(tiny_llama)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-4
    assert hash_weights(changed) != hash_weights(tiny_llama)
    assert hash_weights(copy.deepcopy(tiny_llama).to(torch.bfloat16)) != hash_weights(tiny_llama)


def test_tied_weights_and_odd_layouts_are_hashed_by_value() -> None:
    tied, plain = torch.nn.Module(), torch.nn.Module()
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    tied.a = tied.b = weight
    plain.a, plain.b = torch.nn.Parameter(weight.detach().clone()), torch.nn.Parameter(weight.detach().clone())
    assert hash_weights(tied) == hash_weights(plain)
    plain.b = torch.nn.Parameter(weight.detach().T.contiguous().T)
    assert hash_weights(tied) == hash_weights(plain)
    plain.register_buffer("scalar", torch.tensor(1.0))
    plain.register_buffer("nothing", torch.empty(0))
    assert hash_weights(plain) != hash_weights(tied)


def test_the_tokenizers_hash_ignores_padding_and_notices_the_rest(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    before = hash_tokenizer(tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    assert hash_tokenizer(other) == before
    other.chat_template = "{{ messages }}"
    assert hash_tokenizer(other)["tokenizer"] == before["tokenizer"]
    assert hash_tokenizer(other)["chat_template"] != before["chat_template"]
    other.add_tokens(["<new>"])
    assert hash_tokenizer(other)["tokenizer"] != before["tokenizer"]


def test_devices_are_picked_or_named(monkeypatch: pytest.MonkeyPatch, folder: Path, tiny_llama: Any) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match=r"device='gpu' is no device; give 'auto', 'cpu', 'cuda'"):
        load(folder, device="gpu")
    for model in (folder, tiny_llama):
        with pytest.raises(InputError, match=r"device='cuda:1': this torch .* finds none here; give 'auto'"):
            load(model, device="cuda:1")


def test_a_type_that_torch_does_not_have_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="dtype='fp16' is no type of torch; give 'auto', 'float32', 'float16'"):
        load(folder, dtype="fp16", device="cpu")
