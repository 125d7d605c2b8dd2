"""Packed checkpoints are loaded by whatever package is there, and decode what their weights stand for."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, search
from llmsearch_optuna.errors import DecodingError, InputError
from llmsearch_optuna.fingerprint.weights import hash_weights
from llmsearch_optuna.models import loader as loading
from llmsearch_optuna.models.loader import load
from llmsearch_optuna.models.quantized import require
from llmsearch_optuna.models.tokenization import Positions
from tests.packed_checkpoints import make_packable_llama, save_awq_checkpoint, save_gptq_checkpoint
from tests.tiny import make_tokenizer

PROMPTS = ["Anna asks Ben whether the train", "How many apples", "The quick brown fox jumps over"]
NEW_TOKENS = 12

has_autoawq = pytest.mark.skipif(importlib.util.find_spec("awq") is None, reason="autoawq is not installed")
has_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
has_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
has_gptqmodel = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None, reason="gptqmodel is not installed: make test-awq"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """The folder of an AWQ checkpoint, and a float32 model with the weights that it stands for."""
    folder = tmp_path_factory.mktemp("models") / "tiny-awq"
    return folder, save_awq_checkpoint(folder)


@pytest.fixture
def autoawq_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let AutoAWQ believe that there is a GPU, and load to the CPU; returns the options that it was called with.

    Its layers compute in plain torch there; only its check of the device stands in the way.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is no longer developed, and says so
        import awq
        from awq.models import base
        from awq.modules.linear import gemm
    real, calls = awq.AutoAWQForCausalLM.from_quantized, []

    def from_quantized(place: str, **options: Any) -> Any:
        calls.append(options)
        return real(place, **options | {"device_map": {"": "cpu"}})

    monkeypatch.setattr(base, "get_best_device", lambda: "cuda:0")
    monkeypatch.setattr(gemm, "TRITON_AVAILABLE", False)
    monkeypatch.setattr(awq.AutoAWQForCausalLM, "from_quantized", from_quantized)
    return calls


def without(names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest))


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    """What Hugging Face's generate makes of the prompts, one by one."""
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        new = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        found.append(new.tolist())
    return found


def decoded(engine: Engine) -> list[list[int]]:
    """What our engine makes of them."""
    return [list(c.token_ids) for c in engine.generate(PROMPTS, {"max_new_tokens": NEW_TOKENS})]


def decodes_what_it_stands_for(loaded: Any, plain: LlamaForCausalLM) -> None:
    engine = Engine(loaded.model, loaded.tokenizer)
    tokens = decoded(engine)
    assert engine.stats.plain_requests == 0
    assert tokens == greedy(loaded.model, loaded.tokenizer)
    assert tokens == greedy(plain, loaded.tokenizer)


def is_searched(model: Any, folder: Path) -> None:
    rows = [{"prompt": f"Anna has {n} apples.", "reference": "apples"} for n in range(6)]
    space = [{"max_new_tokens": 6, "num_beams": 1}, {"max_new_tokens": 6, "do_sample": True, "temperature": 0.8}]
    storage = f"sqlite:///{folder}/study.db"
    result = search(
        model,
        rows,
        space,
        holdout=0.3,
        metric="chrf",
        sampler="grid",
        n_trials=4,
        storage=storage,
        study_name="awq",
        progress=False,
    )
    assert [t.state.name for t in result.trials] == ["COMPLETE", "COMPLETE"]
    assert len(result.completions()) == 6


@has_autoawq
def test_a_model_loaded_with_autoawq_is_taken_as_it_is(
    checkpoint: tuple[Path, LlamaForCausalLM], autoawq_on_cpu: list[dict[str, Any]], tmp_path: Path
) -> None:
    from awq import AutoAWQForCausalLM

    folder, plain = checkpoint
    wrapped = AutoAWQForCausalLM.from_quantized(str(folder), fuse_layers=False, trust_remote_code=False)
    loaded = load(wrapped)
    assert loaded.model is wrapped.model
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "WQLinear_GEMM"
    assert loaded.name == "tiny-awq"
    assert loaded.description["quantization"] == "awq"
    decodes_what_it_stands_for(loaded, plain)
    is_searched(wrapped, tmp_path)


@has_autoawq
def test_a_folder_is_loaded_with_autoawq_where_gptqmodel_is_missing(
    checkpoint: tuple[Path, LlamaForCausalLM], autoawq_on_cpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    without({"gptqmodel"}, monkeypatch)
    monkeypatch.setattr(loading, "pick_device", torch.device)  # as where there is a GPU
    folder, plain = checkpoint
    loaded = load(folder, device="cuda", revision="main")
    (options,) = autoawq_on_cpu
    assert options == {
        "fuse_layers": False,
        "trust_remote_code": False,
        "device_map": {"": "cuda"},
        "download_kwargs": {"revision": "main"},
        "torch_dtype": torch.float16,
    }
    decodes_what_it_stands_for(loaded, plain)


@has_autoawq
def test_asking_autoawq_to_fuse_without_its_kernels_fuses_nothing_and_loses_nothing(
    checkpoint: tuple[Path, LlamaForCausalLM], autoawq_on_cpu: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The call of llmsearch's notebooks as `pip install "llmsearch-optuna[awq]"` leaves it: without awq_ext."""
    from awq import AutoAWQForCausalLM

    folder, plain = checkpoint
    with pytest.warns(UserWarning, match="Skipping fusing modules because AWQ extension is not installed"):
        wrapped = AutoAWQForCausalLM.from_quantized(str(folder), fuse_layers=True, trust_remote_code=False)
    decodes_what_it_stands_for(load(wrapped), plain)
    is_searched(wrapped, tmp_path)


@pytest.fixture
def fusing(autoawq_on_cpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the CUDA kernels that fused layers call: awq_ext's norm and flash attention, in plain torch."""
    from awq.models import base
    from awq.modules.fused import attn, norm

    def layernorm(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, epsilon: float) -> None:
        output.copy_((x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)).half() * weight)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
        """All of shape [rows, tokens, heads, dim]; the keys' heads are shared by groups of the queries'."""
        groups = q.shape[2] // k.shape[2]
        wide = (part.repeat_interleave(groups, 2) for part in (k, v))
        heads_first = [part.transpose(1, 2).float() for part in (q, *wide)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal)
        return mixed.transpose(1, 2).to(q.dtype)

    def prompt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        return attend(q, k, v, causal=True)

    def step(
        q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, cache_seqlens: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        seen = int(cache_seqlens[0])
        return attend(q, k_cache[: len(q), :seen], v_cache[: len(q), :seen], causal=False)

    extension = SimpleNamespace(layernorm_forward_cuda=layernorm)
    monkeypatch.setattr(norm, "awq_ext", extension, raising=False)
    monkeypatch.setattr(norm, "AWQ_INSTALLED", True)
    monkeypatch.setattr(base, "try_import", lambda name: (extension, ""))
    monkeypatch.setattr(attn, "flash_attn_func", prompt, raising=False)
    monkeypatch.setattr(attn, "flash_attn_with_kvcache", step, raising=False)


def fused(folder: Path, **options: Any) -> Any:
    """Load as the page for users of llmsearch has it; AutoAWQ's fuser reads a name that transformers 5 has dropped."""
    from awq import AutoAWQForCausalLM

    wrapped = AutoAWQForCausalLM.from_quantized(str(folder), fuse_layers=False, trust_remote_code=False, **options)
    wrapped.model.config.rope_theta = wrapped.model.config.rope_parameters["rope_theta"]
    wrapped.fuse_layers(wrapped.model)
    return wrapped


@has_autoawq
def test_with_its_kernels_autoawq_itself_cannot_fuse_under_this_transformers(
    checkpoint: tuple[Path, LlamaForCausalLM], fusing: None
) -> None:
    """Not ours to mend: the call fails before there is a model. When this test fails, the workaround can go."""
    from awq import AutoAWQForCausalLM

    with pytest.raises(AttributeError, match="'LlamaConfig' object has no attribute 'rope_theta'"):
        AutoAWQForCausalLM.from_quantized(str(checkpoint[0]), fuse_layers=True, trust_remote_code=False)


@has_autoawq
def test_a_fused_model_takes_the_plain_path_and_says_so_once(
    checkpoint: tuple[Path, LlamaForCausalLM], fusing: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder, plain = checkpoint
    wrapped = fused(folder)
    loaded = load(wrapped)
    engine = Engine(loaded.model, loaded.tokenizer)
    assert type(loaded.model.model).__name__ == "LlamaLikeModel"
    for _ in range(2):
        tokens = decoded(engine)
        assert tokens == greedy(plain, loaded.tokenizer)
    assert engine.stats.plain_requests == 2 * len(PROMPTS)
    (said,) = [record.message for record in caplog.records if "decodes through model.generate" in record.message]
    assert said.endswith("because AutoAWQ has fused its layers, which keep keys and values to themselves")
    is_searched(wrapped, tmp_path)


@has_autoawq
def test_a_fused_model_forgets_the_text_before(checkpoint: tuple[Path, LlamaForCausalLM], fusing: None) -> None:
    """Its layers take a prompt for the next token of the text before where lengths suggest it, `generate` or not."""
    folder, plain = checkpoint
    loaded = load(fused(folder))
    engine = Engine(loaded.model, loaded.tokenizer)
    first, new_tokens = list(range(3, 9)), 4
    after = list(range(20, 20 + len(first) + new_tokens))  # one token more than was read
    for second in (after, [30]):
        texts = [loaded.tokenizer.decode(ids) for ids in (first, second)]
        assert [loaded.tokenizer(text)["input_ids"] for text in texts] == [first, second]
        wanted = plain.generate(torch.tensor([second]), max_new_tokens=new_tokens, do_sample=False)[0, len(second) :]
        confused = [
            loaded.model.generate(torch.tensor([ids]), max_new_tokens=new_tokens, do_sample=False)[0, len(ids) :]
            for ids in (first, second)
        ][1]
        assert confused.tolist() != wanted.tolist()
        params = {"max_new_tokens": new_tokens}
        engine.generate(texts[:1], params)
        assert list(engine.generate(texts[1:], params)[0].token_ids) == wanted.tolist()


@has_autoawq
@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2"),
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
    ],
)
def test_what_a_fused_model_cannot_follow_is_refused_by_name(
    checkpoint: tuple[Path, LlamaForCausalLM], fusing: None, params: dict[str, Any], asked: str
) -> None:
    loaded = load(fused(checkpoint[0]))
    engine = Engine(loaded.model, loaded.tokenizer)
    with pytest.raises(DecodingError, match=f"{asked} is impossible: AutoAWQ has fused .*fuse_layers=False"):
        engine.generate(PROMPTS, {"max_new_tokens": 4, **params})


@has_autoawq
def test_the_room_that_autoawq_was_given_is_kept_to(checkpoint: tuple[Path, LlamaForCausalLM], fusing: None) -> None:
    loaded = load(fused(checkpoint[0], max_seq_len=16))
    assert loaded.positions == Positions(shared=16)
    with pytest.raises(DecodingError, match="exceed the model's context of 16"):
        Engine(loaded.model, loaded.tokenizer).generate(PROMPTS[:1], {"max_new_tokens": NEW_TOKENS})


@has_autoawq
def test_on_a_cpu_autoawq_is_not_enough_and_the_error_says_what_is(
    checkpoint: tuple[Path, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    without({"gptqmodel"}, monkeypatch)
    monkeypatch.setattr("awq.models.base.get_best_device", lambda: "cpu")
    with pytest.raises(InputError, match=r"autoawq does not run here .*gptqmodel decodes .*pip install .*gptqmodel"):
        load(checkpoint[0], device="cpu")
    with pytest.raises(InputError, match="dtype='float17' is no type of torch"):
        load(checkpoint[0], device="cpu", dtype="float17")


@has_gguf
def test_a_gguf_file_is_loaded_and_decodes_as_the_model_in_it(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    from tests.gguf_checkpoint import save_gguf

    save_gguf(tiny_llama, tmp_path / "tiny.Q8.gguf")
    wanted = greedy(tiny_llama, tiny_tokenizer)
    for place, file in ((tmp_path / "tiny.Q8.gguf", None), (tmp_path, "tiny.Q8.gguf")):
        loaded = load(str(place), tiny_tokenizer, device="cpu", gguf_file=file)
        assert loaded.fingerprint == hash_weights(tiny_llama)
        assert decoded(Engine(loaded.model, loaded.tokenizer)) == wanted


def test_packages_that_must_be_there_besides_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    there = SimpleNamespace()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name == "gptqmodel" else find(name))
    without({"optimum"}, monkeypatch)
    with pytest.raises(InputError, match=r"it needs the package optimum.*pip install accelerate optimum"):
        require("gptq", "it")
    require("fp8", "what transformers reads alone")


@has_gptqmodel
@pytest.mark.timeout(900)  # compiles its kernel for this processor at first use
def test_a_folder_is_loaded_with_gptqmodel(checkpoint: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    folder, plain = checkpoint
    loaded = load(str(folder), device="cpu")
    assert loaded.description["quantization"] == "awq"
    assert "Awq" in type(loaded.model.model.layers[0].mlp.up_proj).__name__
    decodes_what_it_stands_for(loaded, plain)
    is_searched(str(folder), tmp_path)


@has_gptqmodel
@pytest.mark.timeout(900)
def test_a_gptq_checkpoint_is_loaded_and_decodes_what_it_stands_for(tmp_path: Path) -> None:
    plain = save_gptq_checkpoint(tmp_path / "tiny-gptq")
    loaded = load(tmp_path / "tiny-gptq", device="cpu")
    assert loaded.description["quantization"] == "gptq"
    decodes_what_it_stands_for(loaded, plain)
    is_searched(str(tmp_path / "tiny-gptq"), tmp_path)


@has_bitsandbytes
@pytest.mark.parametrize(
    ("bits", "row_by_row"),
    # 8 bit: what is large in one row decides how all rows of its batch are rounded.
    [({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, True), ({"load_in_8bit": True}, False)],
)
def test_a_bitsandbytes_checkpoint_is_loaded_and_decodes_as_transformers_alone_does(
    tmp_path: Path, bits: dict[str, Any], row_by_row: bool
) -> None:
    plain, folder = make_packable_llama(), tmp_path / "packed"
    plain.save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=BitsAndBytesConfig(**bits), dtype=torch.float32, device_map={"": "cpu"}
    )
    packed.save_pretrained(folder)
    loaded = load(folder, device="cpu")
    assert loaded.description["quantization"] == "bitsandbytes"
    assert type(loaded.model.model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    assert loaded.fingerprint not in (hash_weights(plain), None)
    engine = Engine(loaded.model, loaded.tokenizer)
    tokens = decoded(engine)
    assert (engine.stats.plain_requests == 0) is row_by_row
    assert row_by_row or "rows of different lengths in one batch change its logits" in engine.capabilities
    assert tokens == greedy(packed, loaded.tokenizer)
    is_searched(str(folder), tmp_path)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_folder_is_loaded_to_a_gpu(checkpoint: tuple[Path, LlamaForCausalLM]) -> None:
    loaded = load(checkpoint[0], device="cuda")
    engine = Engine(loaded.model, loaded.tokenizer)
    tokens = decoded(engine)
    assert tokens == greedy(loaded.model, loaded.tokenizer)
