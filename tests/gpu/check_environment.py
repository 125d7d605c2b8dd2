"""What the machine is, and what single operations cost on it."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time

import numpy as np
import torch
import transformers as hf

from llmsearch_optuna.engine import memory
from llmsearch_optuna.engine.engine import Engine  # noqa: F401
from tests.gpu.context import Context, Result, median_ms


def environment(c: Context) -> Result:
    found: Result = {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": hf.__version__,
        "numpy": np.__version__, "cores": os.cpu_count(), "cuda": c.cuda,
    }  # fmt: skip
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        found["cpu"] = next((x.split(":")[1].strip() for x in info if x.startswith("model name")), "")
    for name in ("huggingface_hub", "tokenizers", "psutil", "pynvml"):
        try:
            found[name] = getattr(__import__(name), "__version__", "there")
        except ImportError:
            found[name] = None
    if c.cuda:
        found["device"] = torch.cuda.get_device_name(0)
        found["cudnn"] = torch.backends.cudnn.version()
        with contextlib.suppress(Exception):
            found["sdp_priority"] = [int(x) for x in torch._C._get_sdp_priority_order()]
        x = torch.zeros(1, device="cuda")
        c.sync()
        begun = time.perf_counter()
        for _ in range(2000):
            x.add_(1)
        found["us_per_launch"] = round((time.perf_counter() - begun) / 2000 * 1e6, 2)
        c.sync()

    return {"ok": True, **found}


def nvml(c: Context) -> Result:

    if not c.cuda:
        return {"ok": memory.free_bytes(c.device) > 0, "free_mib": memory.free_bytes(c.device) >> 20}
    hold = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    del hold  # torch keeps 1 GiB that it does not use: free_bytes has to count it
    begun = time.perf_counter()
    nvml = memory._free_by_nvml(0)
    spent = (time.perf_counter() - begun) * 1e3
    by_torch = torch.cuda.mem_get_info(0)[0]
    idle = torch.cuda.memory_reserved(0) - torch.cuda.memory_allocated(0)
    free = memory.free_bytes(c.device)
    return {
        "ok": nvml is not None and abs(nvml - by_torch) < 2**30 and abs(free - by_torch - idle) < 2**30,
        "nvml_mib": None if nvml is None else nvml >> 20, "torch_mib": by_torch >> 20, "free_bytes_mib": free >> 20,
        "idle_mib": idle >> 20, "nvml_ms": round(spent, 1), "uuid": str(torch.cuda.get_device_properties(0).uuid),
        "device_name": memory.device_name(c.device),
    }  # fmt: skip


def sdpa_new_shapes(c: Context) -> Result:
    """A decode step's attention with an explicit mask: what a length that was never seen costs, by backend."""
    rows, heads, dim = (2, 2, 16) if c.small else (64, 32, 128)
    dtype = torch.bfloat16 if c.cuda else torch.float32
    out: Result = {"ok": None}
    modes = ("default", "without_cudnn") if c.cuda else ("default",)
    for mode in modes:
        if c.cuda:
            torch.backends.cuda.enable_cudnn_sdp(mode == "default")
        new, again = [], []
        for length in range(301, 309):
            q = torch.randn(rows, heads, 1, dim, device=c.device, dtype=dtype)
            buffer = torch.randn(2, rows, heads, 384, dim, device=c.device, dtype=dtype)
            mask = torch.ones(rows, 1, 1, length, device=c.device, dtype=torch.bool)
            mask[0, ..., :40] = False
            k, v = buffer[0, :, :, 384 - length :], buffer[1, :, :, 384 - length :]
            for times in (new, again):
                c.sync()
                begun = time.perf_counter()
                torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                c.sync()
                times.append((time.perf_counter() - begun) * 1e3)
        out[mode] = {
            "new_shape_ms": round(statistics.median(new[1:]), 3),
            "again_ms": round(statistics.median(again[1:]), 3),
        }
    if c.cuda:
        torch.backends.cuda.enable_cudnn_sdp(True)
    return out


def transfers(c: Context) -> Result:
    """What one step moves: 256 rows x 1024 candidates to the host, three small tensors to the device."""
    rows, top, vocabulary = (8, 64, 2003) if c.small else (256, 1024, 128256)
    values = torch.randn(rows, top, device=c.device)
    ids = torch.randint(0, vocabulary, (rows, top), device=c.device)
    logits = torch.randn(rows, vocabulary, device=c.device)
    states = torch.randn(rows, 4096, device=c.device, dtype=torch.bfloat16 if c.cuda else torch.float32)
    lengths = list(range(rows))
    pinned = torch.empty(rows, top, pin_memory=c.cuda)
    n = 5 if c.small else 30
    out = {
        "ok": None,
        "values_to_host_pageable": median_ms(c, lambda: values.cpu(), n),
        "ids_to_int32_to_host": median_ms(c, lambda: ids.to(torch.int32).cpu(), n),
        "values_to_host_pinned": median_ms(c, lambda: pinned.copy_(values, non_blocking=True), n),
        "128_of_them_pinned": median_ms(c, lambda: pinned[:, :128].contiguous().copy_(values[:, :128]), n),
        "three_small_to_device": median_ms(
            c,
            lambda: [
                torch.tensor(lengths).to(c.device),
                torch.tensor(lengths).to(c.device),
                torch.tensor(lengths, device=c.device),
            ],
            n,
        ),
        "clone_every_row": median_ms(c, lambda: [states[row].clone() for row in range(rows)], n),
        "topk": median_ms(c, lambda: torch.topk(logits, top, dim=-1), n),
        "topk_128": median_ms(c, lambda: torch.topk(logits, min(128, top), dim=-1), n),
        "logsumexp": median_ms(c, lambda: torch.logsumexp(logits, dim=-1), n),
    }
    double = logits.double()
    noise = torch.rand(rows, vocabulary, device=c.device, dtype=torch.float64)
    out["gumbel_max_fp64_whole_vocabulary"] = median_ms(
        c, lambda: (double - torch.log(-torch.log(noise))).argmax(-1), 5
    )
    return out
