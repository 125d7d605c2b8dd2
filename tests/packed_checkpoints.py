"""Tiny real checkpoints of four bits: weights rounded to the nearest of 16 steps in groups of 32, packed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from tests.tiny import llama_config, make_tokenizer, random_llama

GROUP = 32
IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours stands in which four bits of a packed number, from the lowest on."""
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}

Steps = torch.Tensor
Packed = Mapping[str, torch.Tensor]


def save_awq_checkpoint(folder: Path) -> LlamaForCausalLM:
    """Write it as AutoAWQ does, with its tokenizer.

    Returns:
        The same model in float32 with the weights that the packed ones stand for.
    """

    def packed(steps: Steps, zeros: Steps) -> Packed:
        return {"qweight": _pack(steps, AWQ_ORDER), "qzeros": _pack(zeros, AWQ_ORDER)}

    return _save(folder, AWQ, packed)


def save_gptq_checkpoint(folder: Path) -> LlamaForCausalLM:
    """Write it as AutoGPTQ does (zeros are stored less one), with its tokenizer.

    Returns:
        The same model in float32 with the weights that the packed ones stand for.
    """

    def packed(steps: Steps, zeros: Steps) -> Packed:
        assert zeros.min() >= 1, "its format cannot say 0"
        groups = torch.arange(len(steps), dtype=torch.int32) // GROUP
        return {"qweight": _pack(steps.T, IN_ORDER).T, "qzeros": _pack(zeros - 1, IN_ORDER), "g_idx": groups}

    return _save(folder, GPTQ, packed)


def _save(folder: Path, quantization: Mapping[str, Any], packed: Callable[[Steps, Steps], Packed]) -> LlamaForCausalLM:
    model = make_packable_llama()
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if not name.endswith("proj.weight"):
                tensors[name] = weight.half()
                continue
            steps, zeros, scales = _round(weight)
            place = name.removesuffix(".weight")
            tensors |= {f"{place}.{part}": tensor for part, tensor in packed(steps, zeros).items()}
            tensors[f"{place}.scales"] = scales
            weight.copy_(((steps - zeros.repeat_interleave(GROUP, 0)) * scales.repeat_interleave(GROUP, 0)).T)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}), encoding="utf-8")
    model.generation_config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def make_packable_llama() -> LlamaForCausalLM:
    """A random float32 Llama whose weights are wide enough to be packed."""
    return random_llama(llama_config(hidden_size=64, intermediate_size=128))


def _round(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round a weight [out, in]; returns steps [in, out] and zeros [in / 32, out] in 0..15, and float16 scales."""
    columns, rows = weight.shape
    grouped = weight.T.reshape(rows // GROUP, GROUP, columns)
    low, high = grouped.amin(1), grouped.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(0, 15)
    steps = (grouped / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return steps.reshape(rows, columns), zeros, scales


def _pack(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Pack eight four-bit values of a row [rows, columns] into one int32 [rows, columns / 8]."""
    ordered = values.to(torch.int64).reshape(values.shape[0], -1, 8)[:, :, list(order)]
    packed = (ordered << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
