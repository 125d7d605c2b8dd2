"""Kinds of checkpoints that need more than transformers: which packages read them, and what to do without these.

Packed weights (AWQ, GPTQ, bitsandbytes), GGUF files and PEFT adapters. Tokenizers and devices are chosen elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmsearch_optuna.errors import InputError


@dataclass(frozen=True)
class Needs:
    """What a kind of checkpoint needs.

    Attributes:
        any_of: Packages of which one must be there, by import name; the first is taken where several are.
        command: Brings one.
        all_of: Packages that must be there besides.
    """

    any_of: tuple[str, ...]
    command: str
    all_of: tuple[str, ...] = ()


_GPTQMODEL = "BUILD_CUDA_EXT=0 pip install --no-build-isolation gptqmodel"
"""It builds from source against the torch that is installed; CUDA kernels besides need a CUDA compiler."""

NEEDS: dict[str, Needs] = {
    "awq": Needs(
        ("gptqmodel", "awq"),
        f'pip install "llmsearch-optuna[awq]" brings autoawq, which decodes on a GPU; {_GPTQMODEL} brings gptqmodel, '
        "which decodes on a CPU too",
        ("accelerate",),
    ),
    "gptq": Needs(("gptqmodel",), f"{_GPTQMODEL}, and pip install accelerate optimum", ("accelerate", "optimum")),
    "bitsandbytes": Needs(("bitsandbytes",), 'pip install "llmsearch-optuna[bitsandbytes]"', ("accelerate",)),
    "gguf": Needs(("gguf",), 'pip install "llmsearch-optuna[gguf]"', ("accelerate",)),
    "peft": Needs(("peft",), 'pip install "llmsearch-optuna[peft]"'),
}


def require(kind: str, what: str) -> None:
    """Make sure that a kind of checkpoint can be read; kinds that are not listed are left to transformers.

    Raises:
        InputError: A package is missing; names it, and the command that brings it.
    """
    needs = NEEDS.get(kind)
    if needs is None:
        return
    if not any(_is_there(name) for name in needs.any_of):
        missing = " or ".join(needs.any_of)
        raise InputError(f"{what} needs the package {missing}, which is not installed: {needs.command}")
    for name in needs.all_of:
        if not _is_there(name):
            raise InputError(f"{what} needs the package {name}, which is not installed: {needs.command}")


def quantization_of(config: Any) -> str | None:
    """Return how a checkpoint's weights are packed (``"awq"``, ``"gptq"`` …), or None where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    if method is None and isinstance(found, Mapping) and any(key.startswith("load_in_") for key in found):
        method = "bitsandbytes"
    return str(getattr(method, "value", method))


def needs_autoawq(quantization: str | None) -> bool:
    """Return whether AutoAWQ must load it: transformers 5 reads AWQ through gptqmodel only."""
    return quantization == "awq" and not _is_there("gptqmodel") and _is_there("awq")


def load_with_autoawq(
    place: str, device_map: Any, *, revision: str | None, dtype: str | torch.dtype, trust_remote_code: bool
) -> Any:
    """Return the transformers model of an AWQ checkpoint, loaded through AutoAWQ.

    Its layers are not fused: fused ones keep keys and values to themselves, so that nothing could be replayed.

    Args:
        place: A folder or hub name.
        device_map: Where its modules go, as transformers has it.
        revision: Branch, tag or commit on the hub.
        dtype: ``"auto"`` is float16, in which its kernels compute.
        trust_remote_code: AutoAWQ's own default is to run it; ours is not.

    Raises:
        InputError: AutoAWQ does not run here; says what does.
    """
    from awq import AutoAWQForCausalLM

    try:
        wrapped = AutoAWQForCausalLM.from_quantized(
            place,
            fuse_layers=False,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
            download_kwargs={"revision": revision},
            torch_dtype=torch.float16 if dtype == "auto" else torch_dtype(dtype),
        )
    except ImportError as problem:  # on a CPU it asks for a package that is no longer made
        raise InputError(
            f"model={place!r}: autoawq does not run here ({problem}). gptqmodel decodes AWQ checkpoints on a CPU too: "
            f"{_GPTQMODEL}"
        ) from problem
    return wrapped.model


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a type of torch by its name; InputError where there is none of that name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype={dtype!r} is no type of torch; give 'auto', 'float32', 'float16' or 'bfloat16'")
    return found


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
