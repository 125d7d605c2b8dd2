"""How fast a study is decoded, and where the time goes."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from tests.engine_work import outside_share, rows_per_step, since
from tests.gpu.compare import tokens_of
from tests.gpu.context import Context, Result


def concentrated(c: Context, count: int) -> list[Result]:
    rng = np.random.default_rng(2)
    return [
        {
            "do_sample": True,
            "temperature": round(float(rng.uniform(0.6, 0.9)), 3),
            "top_p": round(float(rng.uniform(0.8, 1.0)), 3),
        }
        for _ in range(count)
    ]


def as_a_study(
    engine: Engine, prompts: Sequence[str], configurations: Sequence[Result], new: int, in_flight: int = 4
) -> int:

    waiting = [GenerationParams.of({"max_new_tokens": new, **x}, engine.default_params) for x in configurations]
    left: dict = {}
    produced = started = 0
    while started < len(waiting) or left:
        while started < len(waiting) and len(left) < in_flight:
            engine.submit([Request(started, row, p, waiting[started]) for row, p in enumerate(prompts)])
            left[started] = len(prompts)
            started += 1
        for finished in engine.poll():
            if finished.completion is None:
                raise RuntimeError(finished.error)
            produced += len(finished.completion.token_ids)
            left[finished.request.tag] -= 1
            if not left[finished.request.tag]:
                del left[finished.request.tag]
    return produced


def told(stats: Any, produced: int, seconds: float) -> Result:
    steps = max(1, stats.steps)
    return {
        "seconds": round(seconds, 2), "tokens_s": round(produced / seconds), "steps": stats.steps,
        "rows_per_step": round(rows_per_step(stats), 1), "replayed": stats.replayed_tokens, "tokens": stats.tokens,
        "forwards": stats.forward_tokens, "lookups": stats.lookups, "prefill_tokens": stats.prefill_tokens,
        "forward_ms_per_step": round(stats.forward_seconds / steps * 1e3, 2),
        "outside_ms_per_step": round((stats.seconds - stats.forward_seconds) / steps * 1e3, 2),
        "outside_us_per_token": round((stats.seconds - stats.forward_seconds) / max(1, stats.tokens) * 1e6, 1),
        "outside_share": round(outside_share(stats), 3), "out_of_memory": stats.out_of_memory,
        "cache_mib": stats.cache_bytes >> 20,
    }  # fmt: skip


def loop_of_generate(
    c: Context,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    configurations: Sequence[Result],
    new: int,
    batch: int,
) -> tuple[float, int]:
    produced = 0
    begun = time.perf_counter()
    for options in configurations:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch):
            texts = [prompts[i] for i in order[start : start + batch]]
            inputs = tokenizer(
                texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
            )
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, **options)
            produced += output[:, inputs["input_ids"].shape[1] :].numel()
    c.sync()
    return time.perf_counter() - begun, produced


def speed_1b(c: Context) -> Result:
    """64 prompts of about 300 tokens, 8 concentrated configurations: a loop around generate, and our engine."""

    model = c.model_1b()
    vocabulary = model.config.vocab_size
    tokenizer = c.tokenizer(vocabulary)
    rows, new, count = (6, 6, 3) if c.small else (64, 128, 8)
    prompts = c.prompts(rows, *((20, 30) if c.small else (260, 340)), vocabulary, seed=6)
    configurations = concentrated(c, count)
    out: Result = {"ok": None, "vocabulary": vocabulary}
    loop_of_generate(c, model, tokenizer, prompts[:2], configurations[:1], 4, 64)  # warm up
    timed = configurations[:1] if c.small else configurations[:3]
    spent, produced = loop_of_generate(c, model, tokenizer, prompts, timed, new, 64)
    out["loop"] = {
        "seconds_for_all": round(spent * count / len(timed), 2),
        "tokens_s": round(produced / spent),
        "timed": len(timed),
    }
    for name, given in (("bare", {"cache_budget": 0}), ("ours", {})):
        engine = Engine(model, tokenizer, **given)
        out["capabilities"], out["capacity"] = engine.capabilities, engine.capacity
        before = engine.stats
        begun = time.perf_counter()
        produced = as_a_study(engine, prompts, configurations, new)
        c.sync()
        out[name] = told(since(before, engine.stats), produced, time.perf_counter() - begun)
        if name == "ours":  # the whole list once more: nothing but walking
            before, begun = engine.stats, time.perf_counter()
            produced = as_a_study(engine, prompts, configurations, new)
            out["all_replayed"] = told(since(before, engine.stats), produced, time.perf_counter() - begun)
        del engine
        c.clean()
    out["loop_over_ours"] = round(out["loop"]["seconds_for_all"] / out["ours"]["seconds"], 2)
    out["loop_over_bare"] = round(out["loop"]["seconds_for_all"] / out["bare"]["seconds"], 2)
    return out


def hottest(engine: Engine, prompts: Sequence[str], params: Mapping[str, Any]) -> dict[str, float]:
    """The functions in which a run spends most of the host's time (waiting for the device included)."""
    profile, before = cProfile.Profile(), engine.stats.steps
    profile.runcall(engine.generate, prompts, params)
    steps = max(1, engine.stats.steps - before)
    rows = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    spent = sorted(((entry[2], place) for place, entry in rows), reverse=True)[:16]
    return {f"{file.rsplit('/', 1)[-1]}:{line} {name}": round(s / steps * 1e3, 3) for s, (file, line, name) in spent}


def rows_1b(c: Context) -> Result:
    """One configuration at 64 and at 256 rows, nothing replayed; where a step's time goes."""

    model = c.model_1b()
    vocabulary = model.config.vocab_size
    tokenizer = c.tokenizer(vocabulary)
    out: Result = {"ok": None}
    new = 6 if c.small else 48
    configurations = {
        "top_k50_T.7": {"do_sample": True, "temperature": 0.7},
        "top_p.95_T.8": {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
        "greedy": {},
    }
    for rows in (4, 8) if c.small else (64, 256):
        prompts = c.prompts(rows, *((20, 30) if c.small else (260, 340)), vocabulary, seed=8)
        for name, params in configurations.items():
            if rows == 64 and name == "greedy":
                continue
            engine = Engine(model, tokenizer, batch_size=rows, cache_budget=0)
            engine.generate(prompts[:2], {"max_new_tokens": 3, **params})
            first = {"max_new_tokens": 1, **params}
            engine.generate(prompts, first)
            before, begun = engine.stats, time.perf_counter()
            engine.generate(prompts, first)  # prompts alone: taken off below
            prefill = time.perf_counter() - begun
            begun = time.perf_counter()
            before = engine.stats
            produced = sum(len(x) for x in tokens_of(engine, prompts, {"max_new_tokens": new, **params}))
            seconds = time.perf_counter() - begun
            stats = since(before, engine.stats)
            steps = max(1, stats.steps)
            out[f"{rows}_{name}"] = {
                **told(stats, produced, seconds), "prefill_seconds": round(prefill, 3),
                "ms_per_step_without_prefill": round((seconds - prefill) / steps * 1e3, 2),
                "hottest_ms_per_step": hottest(engine, prompts, {"max_new_tokens": new, **params}),
            }  # fmt: skip
            del engine
            c.clean()
    return out
