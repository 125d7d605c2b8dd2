"""What becomes of memory that runs out, and of what moves to the host."""

from __future__ import annotations

import contextlib
import time

import torch

from llmsearch_optuna.engine.cache import offload
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner
from tests.engine.memory_limit import MemoryLimit
from tests.gpu.compare import differing, tokens_of
from tests.gpu.context import Context, Result


def out_of_memory(c: Context) -> Result:
    """A real CUDA out-of-memory in prompts and steps: the same tokens as without, and nothing held afterwards."""

    shape = (2, 64, 128, 4, 2, 16, 499) if c.small else (8, 1024, 2048, 8, 8, 128, 4096)
    model = c.big(*shape).float()
    vocabulary = shape[-1]
    tokenizer = c.tokenizer(vocabulary)
    rows, new = (6, 6) if c.small else (48, 24)
    prompts = c.prompts(rows, 20 if c.small else 350, 30 if c.small else 500, vocabulary, seed=4)
    params = {"max_new_tokens": new}
    free = MemoryLimit(10**12)
    with contextlib.nullcontext() if c.cuda else free:
        expected = tokens_of(Engine(model, tokenizer, batch_size=rows, cache_budget=0), prompts, params)
    c.clean()
    out: Result = {"ok": True}
    for name, budget in (("no_cache", 0), ("with_cache", 10**9)):
        need = rows * 560 * shape[0] * 2 * shape[4] * shape[5] * 4
        held: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if c.cuda:
            allocated = torch.cuda.memory_allocated()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (allocated + 0.75 * need) / total))
            out["limit_mib"] = int(allocated + 0.75 * need) >> 20
        else:
            # not less: beside so small a model the first chunk of scores, which no row can do without, is a large part
            held = MemoryLimit(free.peak * 3 // 4)
        with held:
            engine = Engine(model, tokenizer, batch_size=rows, cache_budget=budget)
            begun = time.perf_counter()
            got = tokens_of(engine, prompts, params)
            spent = time.perf_counter() - begun
            again = tokens_of(engine, prompts[: rows // 2], {**params, "max_new_tokens": new + 2})
        if c.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        stats = engine.stats
        out[name] = {
            **differing(expected, got), "out_of_memory": stats.out_of_memory, "seconds": round(spent, 2),
            "learned": [[*key, rows] for key, rows in engine.batch_sizes.items()], "host_mib": stats.host_bytes >> 20,
            "evictions": stats.evictions, "recomputed": stats.recomputed_tokens,
            "longer_agrees": all(x == y[: len(x)] for x, y in zip(got, again, strict=False)),
        }  # fmt: skip
        out["ok"] &= got == expected and stats.out_of_memory > 0 and out[name]["longer_agrees"]
        del engine
        c.clean()
        if c.cuda:
            out[name]["held_mib"] = (torch.cuda.memory_allocated() - allocated) >> 20
            out["ok"] &= out[name]["held_mib"] < 64
    return out


def host_memory(c: Context, lag: bool = False) -> dict:
    """Keys and values that move to page-locked memory and back: the same tokens, and nothing computed again.

    With `lag` the stream is held up before every copy to the host, which only makes the order visible. On a CPU such a
    stream is simulated: copies to the host arrive there with the next forward pass. A copy back of a contiguous tensor
    is queued behind them; one of a part that is not contiguous is gathered on the host at once (aten's Copy.cu).
    """

    tokenizer = c.tokenizer(499)
    prompts = c.prompts(4 if c.small else 8, 5, 40, 499, seed=5)
    model = c.tiny("llama")
    new = 8 if c.small else 16
    trials = [
        {"max_new_tokens": new},
        {"max_new_tokens": new, "do_sample": True, "temperature": 1.4, "top_k": 0},
        {"max_new_tokens": new, "num_beams": 3},
        {"max_new_tokens": new + 2, "repetition_penalty": 1.3},
        {"max_new_tokens": new, "do_sample": True, "temperature": 1.1},
    ]
    behind = offload.HostOffload.behind.__func__
    store, fetch = offload.HostOffload.store, offload.HostOffload.fetch
    seen = {"stored": 0, "fetched": 0, "fetched_in_part": 0, "read_too_early": 0, "simulated": lag and not c.cuda}
    queued: list = []  # what has been stored since the last synchronisation
    forward = ModelRunner._forward

    def settled():
        for copy, source in queued:
            if source is not None:
                copy.copy_(source)
        queued.clear()

    def synchronising(self, *a):
        states = forward(self, *a)
        settled()
        return states

    def counting_store(self, segment):
        seen["stored"] += 1
        if lag and c.cuda:
            torch.cuda._sleep(8_000_000)
        elif lag:
            queued.append((torch.full(segment.shape, 7.0, dtype=segment.dtype), segment.clone()))
            return queued[-1][0]
        queued.append((store(self, segment), None))
        return queued[-1][0]

    def counting_fetch(self, segment):
        seen["fetched"] += 1
        place = segment.untyped_storage().data_ptr()
        source = next((x for copy, x in queued if copy.untyped_storage().data_ptr() == place), segment)
        if not segment.is_contiguous():
            seen["fetched_in_part"] += 1
            seen["read_too_early"] += source is not segment
        if lag and not c.cuda:
            ordered = segment.is_contiguous() and source is not segment
            first = segment.storage_offset()
            part = source.flatten()[first : first + segment.numel()].view(segment.shape) if ordered else segment
            return part.clone()
        return fetch(self, segment)

    out: Result = {"ok": True}
    offload.HostOffload.store, offload.HostOffload.fetch = counting_store, counting_fetch
    ModelRunner._forward = synchronising
    if not c.cuda:  # a processor stands behind itself
        offload.HostOffload.behind = classmethod(lambda cls, device: cls(device, 10**9))
    try:
        plenty = Engine(model, tokenizer, batch_size=4, top=8, cache_budget=10**9)
        expected = [tokens_of(plenty, prompts, p) for _ in range(2) for p in trials]
        for budget in (30_000,) if c.small else (30_000, 45_000, 90_000):
            for rows in (2, 3):
                engine = Engine(model, tokenizer, batch_size=rows, top=8, cache_budget=budget)
                got = [tokens_of(engine, prompts, p) for _ in range(2) for p in trials]
                record = differing([x for r in expected for x in r], [x for r in got for x in r])
                stats = engine.stats
                out[f"{budget}_{rows}"] = {
                    "rows": record["rows"], "rows_differ": record["rows_differ"],
                    "host_kib": stats.host_bytes >> 10, "recomputed": stats.recomputed_tokens,
                }  # fmt: skip
                out["ok"] &= got == expected
    finally:
        offload.HostOffload.store, offload.HostOffload.fetch = store, fetch
        ModelRunner._forward = forward
        offload.HostOffload.behind = classmethod(behind)
    return out | seen


def host_memory_lagging_stream(c: Context) -> Result:
    return host_memory(c, lag=True)
