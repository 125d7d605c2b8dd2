"""One decoding step beside the same kernels in a bare CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from llmsearch_optuna.engine.model_runner import ModelRunner, without_cudnn_attention
from tests.gpu.context import Context, Result, median_ms

SIZES = ((64, 364), (256, 364))
"""Rows, and tokens of the longest."""

ALLOWED = 1.15
"""A step may take so many times what the bare graph takes."""


def step_1b(c: Context) -> Result:
    return step_times(c, c.model_1b())


def step_8b(c: Context) -> Result:
    c.drop("1b")
    shape = (2, 64, 128, 4, 2, 16, 2003) if c.small else (32, 4096, 14336, 32, 8, 128, 128256)
    return step_times(c, c.big(*shape))


def step_times(c: Context, model: Any) -> Result:
    """Steps as the engine takes them, without graphs, and as a bare graph; and the output head on the same rows."""
    with without_cudnn_attention(), torch.inference_mode():
        runner = ModelRunner(model)
        out: Result = {"ok": None, "capabilities": str(runner.capabilities)}
        for rows, length in ((4, 20),) if c.small else SIZES:
            out[f"{rows}x{length}"] = record = one_size(c, runner, rows, length)
            if isinstance(record.get("bare_graph"), tuple):
                record["over_bare_graph"] = round(record["step"][0] / record["bare_graph"][0], 3)
                out["ok"] = out["ok"] is not False and record["over_bare_graph"] <= ALLOWED
            c.clean()
        out["graphs"] = None if runner._static is None else runner._static.captured
        out["failure"] = "no static steps" if runner._static is None else runner._static.failure
    return out


def one_size(c: Context, runner: ModelRunner, rows: int, length: int) -> Result:
    shape = runner.capabilities.shape
    assert shape is not None
    buffer = runner.buffer(rows)
    size = (shape.layers, 2, shape.heads, length, shape.head_dim)
    segment = torch.randn(size, device=c.device, dtype=shape.dtype) * 0.1
    for row in range(rows):
        buffer.join([segment[:, :, :, : length - row % 40 if length > 60 else length]])
    buffer.reserve_step()
    tokens = [5 + row % 100 for row in range(rows)]
    repeats = 3 if c.small else 12
    record: Result = {"kv_gib": round(buffer.nbytes / 2**30, 2)}
    record["step"] = median_ms(c, lambda: runner.step(buffer, tokens), repeats, warm=5)
    states = runner.step(buffer, tokens)
    record["scores"] = median_ms(c, lambda: runner.scores(states), repeats)
    static, runner._static = runner._static, None
    record["step_without_graphs"] = median_ms(c, lambda: runner.step(buffer, tokens), repeats)
    runner._static = static
    ids = torch.tensor(tokens, device=c.device)[:, None]
    positions = torch.tensor(buffer.lengths, device=c.device)[:, None]
    mask = buffer.attention_mask().bool()[:, None, None, :]

    def body() -> object:
        return runner._body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=buffer.cache, use_cache=True
        )

    def head() -> object:
        logits = runner.model.get_output_embeddings()(states).float()
        return torch.topk(logits, min(1024, logits.shape[-1]), dim=-1), torch.logsumexp(logits, dim=-1)

    record["head"] = median_ms(c, head, repeats)
    if c.cuda:
        record["bare_graph"] = bare_graph(c, body, repeats)
        record["head_graph"] = bare_graph(c, head, repeats)
    return record


def bare_graph(c: Context, work: Callable[[], object], repeats: int) -> tuple[float, float] | str:
    """The time of work that is replayed as a CUDA graph, or why there is none."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return median_ms(c, graph.replay, repeats)
    except Exception as error:
        torch.cuda.synchronize()
        return f"{type(error).__name__}: {error}"[:300]
