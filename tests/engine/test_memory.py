"""What counts as running out of memory, and that an error lets go of its tensors."""

from __future__ import annotations

import errno
import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from llmsearch_optuna.engine.memory import (
    automatic_cache_budget,
    cache_bytes_per_token,
    forget_traceback,
    free_bytes,
    is_out_of_memory,
    rows_that_fit,
)
from tests.engine.architectures import GROUPED, PLAIN, ROW_BY_ROW, make

MB = 2**20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_these_mean_that_memory_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_so_does_what_numpy_raises() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    assert type(caught.value) is not MemoryError
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt(), OSError("disk full")]
)
def test_these_do_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_an_error_lets_go_of_the_tensors_in_its_frames() -> None:
    def fail() -> None:
        tensor = torch.zeros(10)
        references.append(weakref.ref(tensor))
        try:
            raise RuntimeError("inner")
        except RuntimeError as inner:
            raise RuntimeError("outer") from inner

    references: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(RuntimeError) as caught:
        fail()
    error = caught.value
    del caught
    forget_traceback(error)
    gc.collect()
    assert references[0]() is None


def test_the_automatic_budget_is_half_of_what_is_free() -> None:
    device = torch.device("cpu")
    assert 0 < automatic_cache_budget(device) <= free_bytes(device)


# ---- what is free ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [0, 100 * MB, 3 * MB])
def test_on_a_cpu_it_is_what_the_system_calls_available(available: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr("llmsearch_optuna.engine.memory._address_space_left", lambda: 2**62)
    assert free_bytes(torch.device("cpu")) == available


def test_a_limit_on_the_address_space_counts_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * MB))
    monkeypatch.setattr("llmsearch_optuna.engine.memory._address_space_left", lambda: 7 * MB)
    assert free_bytes(torch.device("cpu")) == 7 * MB


class FakeCuda:
    """What torch and NVML say of one device: so much is free, and torch holds so much, partly unused."""

    def __init__(self, patch: pytest.MonkeyPatch, uuid: str = "1234") -> None:
        self.free_by_nvml: int | None = 0
        self.free_by_torch = self.reserved = self.allocated = 0
        self.asked: list[str] = []
        self._uuid = uuid
        patch.setitem(sys.modules, "pynvml", self)
        patch.setattr(torch.cuda, "memory_reserved", lambda index: self.reserved)
        patch.setattr(torch.cuda, "memory_allocated", lambda index: self.allocated)
        patch.setattr(torch.cuda, "mem_get_info", lambda index: (self.free_by_torch, 2**40))
        patch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=self._uuid))

    def nvmlInit(self) -> None:
        if self.free_by_nvml is None:
            raise RuntimeError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(free=self.free_by_nvml)


@pytest.mark.parametrize(("uuid", "asked"), [("1234", "GPU-1234"), ("GPU-1234", "GPU-1234"), ("MIG-1", "MIG-1")])
def test_on_cuda_it_is_what_nvml_calls_free_and_what_torch_holds_unused(
    uuid: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, fake = torch.device("cuda", 0), FakeCuda(monkeypatch, uuid)
    fake.free_by_torch = 999 * MB
    for free in (10 * MB, 500 * MB, 20 * MB):
        fake.free_by_nvml = free
        fake.reserved, fake.allocated = 8 * MB, 5 * MB
        assert free_bytes(device) == free + 3 * MB
    assert set(fake.asked) == {asked}


def test_without_nvml_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    fake.free_by_nvml, fake.free_by_torch = None, 30 * MB
    assert free_bytes(torch.device("cuda", 0)) == 30 * MB


# ---- what a row takes -----------------------------------------------------------------------------------------------


def bytes_that_a_token_takes(model: PreTrainedModel) -> int:
    """Of the keys and values that the (decoder's) own tokens leave in a cache."""
    tokens = torch.arange(3, 12)[None]
    own = DynamicCache()
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            cache = EncoderDecoderCache(own, DynamicCache())
            model(input_ids=tokens, decoder_input_ids=tokens, past_key_values=cache)
        else:
            model(input_ids=tokens, past_key_values=own)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in own.layers) // tokens.shape[1]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted({*ROW_BY_ROW, *PLAIN} - {"mamba", "falcon-rope", "falcon-alibi"}))
def test_a_configuration_says_what_a_token_takes(name: str) -> None:
    model = make(name)
    assert cache_bytes_per_token(model.config, 4) == bytes_that_a_token_takes(model)
    assert cache_bytes_per_token(model.config, 2) == bytes_that_a_token_takes(model) // 2


def test_what_latent_attention_keeps_is_counted() -> None:
    lengths = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "kv_lora_rank": 10, "q_lora_rank": 8}
    sizes = {**GROUPED, "num_key_value_heads": 4}
    model = hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes, **lengths, first_k_dense_replace=2)).eval()
    assert cache_bytes_per_token(model.config, 4) == bytes_that_a_token_takes(model) == 2 * (10 + 4) * 4


def test_the_decoder_of_an_encoder_decoder_model_counts() -> None:
    t5 = hf.T5Config(d_model=32, d_kv=8, num_layers=7, num_decoder_layers=3, num_heads=4)
    assert cache_bytes_per_token(t5, 4) == 3 * 4 * (8 + 8) * 4
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 2}
    bart = hf.BartConfig(d_model=32, encoder_layers=7, decoder_layers=3, **heads)
    assert cache_bytes_per_token(bart, 4) == 3 * 2 * (16 + 16) * 4


def test_the_text_part_of_a_configuration_counts() -> None:
    whole = hf.Gemma3Config(text_config=hf.Gemma3TextConfig(**GROUPED, head_dim=8))
    assert cache_bytes_per_token(whole, 2) == 2 * 2 * (8 + 8) * 2


@pytest.mark.parametrize("config", [hf.MambaConfig(), hf.Mamba2Config(), hf.RwkvConfig()], ids=type)
def test_where_there_is_no_attention_nothing_is_guessed(config: Any) -> None:
    assert cache_bytes_per_token(config, 4) is None


def test_half_of_what_is_free_holds_rows_and_their_scores() -> None:
    row = 1024 * 100 + 4 * 50 * 4
    assert rows_that_fit(2 * 7 * row, 100, 50) == 7
    assert rows_that_fit(2 * 7 * row - 1, 100, 50) == 6
    assert rows_that_fit(0, 100, 50) == 0
