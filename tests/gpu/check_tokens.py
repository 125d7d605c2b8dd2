"""Whether tokens are right on the device."""

from __future__ import annotations

import contextlib

import torch

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner, without_cudnn_attention
from tests.engine.two_devices import DEVICES, devices, spread
from tests.gpu.compare import alone, differing, tokens_of
from tests.gpu.context import Context, Result


def static_steps(c: Context) -> Result:
    """Steps in static shapes on the device: whether graphs are made, and the same states as without them."""
    out: Result = {"ok": True}
    for family in ("llama", "qwen3", "gemma3"):
        with without_cudnn_attention(), torch.inference_mode():
            runner = ModelRunner(c.tiny(family))
            same = runner.use_static_steps()
            step = runner._static
            record: Result = {
                "same_as_usual": same,
                "captured": step and step.captured,
                "failure": step and step.failure,
            }
            if step is not None:
                buffers = [runner.buffer(6) for _ in range(2)]
                for row in runner.prefill([[5, 9, 30, 41], [7] * 9, [8, 60, 3], [4, 4], [11] * 20]):
                    for buffer in buffers:
                        buffer.join([row.segment])
                worst = 0.0
                for token in range(10 if c.small else 100):
                    for buffer in buffers:
                        buffer.reserve_step()
                    states = step(buffers[0], [token + 3] * 5)
                    runner._static = None
                    usual = runner.step(buffers[1], [token + 3] * 5)
                    runner._static = step
                    worst = max(worst, float((states - usual).abs().max() / usual.abs().max()))
                    for buffer in buffers:
                        buffer.commit_step()
                record |= {"worst": worst, "captured": step.captured, "failure": step.failure}
                out["ok"] &= worst < 1e-4 and step.failure is None and (step.captured > 0 or not c.cuda)
            out[family] = record
            out["ok"] &= same
    return out


def greedy_parity_fp32(c: Context) -> Result:

    new = 12 if c.small else 32
    count = 5 if c.small else 24
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(count, 3, 40, 499)
    out: Result = {"ok": True}
    for family in ("llama", "qwen3", "gemma3"):
        model = c.tiny(family)
        engine = Engine(model, tokenizer, batch_size=7)
        for name, params, options in (
            ("greedy", {}, {}),
            ("penalty", {"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ):
            ours = tokens_of(engine, prompts, {"max_new_tokens": new, **params})
            theirs = [alone(model, tokenizer, p, max_new_tokens=new, do_sample=False, **options) for p in prompts]
            out[f"{family}_{name}"] = differing(ours, theirs)
            out["ok"] &= ours == theirs
        out[f"{family}_capabilities"] = engine.capabilities
        out["ok"] &= "row by row" in engine.capabilities
    return out


SAMPLING = (
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": True, "temperature": 1.0, "top_k": 0},
    {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.1},
    {"do_sample": True, "temperature": 1.2, "min_p": 0.05, "top_k": 0},
    {"do_sample": True, "num_beams": 2, "top_k": 20},
)


PENALISED = (
    {"repetition_penalty": 1.2, "min_new_tokens": 5},
    {"do_sample": True, "top_p": 0.9, "top_k": 0, "presence_penalty": 0.6, "frequency_penalty": 0.3},
    {"do_sample": True, "top_k": 0, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
)


def device_picking(c: Context) -> Result:
    """Tokens that the device picks beside those that the host picks from the same scores, and what a pick costs."""
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(6 if c.small else 48, 3, 40, 499, seed=9)
    model = c.tiny("llama")
    out: Result = {"ok": True}
    for number, params in enumerate([*SAMPLING[:4], {}, *PENALISED]):
        given = {"max_new_tokens": 8 if c.small else 32, **params}
        engines = [Engine(model, tokenizer, batch_size=len(prompts)) for _ in range(2)]
        tokens = []
        for engine, on_device in zip(engines, (False, True), strict=True):
            engine._runner.samples_on_device = on_device
            tokens.append(tokens_of(engine, prompts, given))
        record = differing(*tokens)
        out[f"{number}"] = {"rows_differ": record["rows_differ"], "lookups": [e.stats.lookups for e in engines]}
        out["ok"] &= tokens[0] == tokens[1]
    return out


def two_devices(c: Context) -> Result:
    """Half of the layers on another device: row by row, with the tokens of one. Two cards, or a card and its host."""
    others = torch.device("cuda", 1) if torch.cuda.device_count() > 1 else torch.device("cpu")
    near, far = (c.device, others) if c.cuda else DEVICES
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(4 if c.small else 24, 3, 40, 499, seed=11)
    out: Result = {"ok": True, "devices": [str(near), str(far)]}
    with contextlib.nullcontext() if c.cuda else devices():
        whole = Engine(c.tiny("llama"), tokenizer, batch_size=7)
        halves = Engine(spread(c.tiny("llama"), near, far), tokenizer, batch_size=7, cache_budget=10**6)
        for number, params in enumerate(({}, *SAMPLING[1:3], {"num_beams": 3})):
            given = {"max_new_tokens": 6 if c.small else 32, **params}
            expected, found = (tokens_of(engine, prompts, given) for engine in (whole, halves))
            out[f"{number}"] = differing(expected, found)
            out["ok"] &= expected == found
        out["capabilities"] = halves.capabilities
        out["ok"] &= "row by row" in halves.capabilities and halves.stats.plain_requests == 0
    return out


def beams_parity_fp32(c: Context) -> Result:

    new = 8 if c.small else 20
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(4 if c.small else 12, 3, 40, 499, seed=1)
    out: Result = {"ok": True}
    for family in ("llama", "gemma3"):
        model = c.tiny(family)
        engine = Engine(model, tokenizer, batch_size=9)
        for beams, penalty in ((3, 1.0), (4, 0.6)):
            options = {"num_beams": beams, "length_penalty": penalty, "max_new_tokens": new}
            ours = tokens_of(engine, prompts, options)
            theirs = [alone(model, tokenizer, p, do_sample=False, **options) for p in prompts]
            out[f"{family}_{beams}"] = differing(ours, theirs)
            out["ok"] &= ours == theirs
    return out


def batch_independence_fp32(c: Context) -> Result:
    """Sampled tokens for batch sizes 1, 5 and 32, in two orders, with and without a cache, and against the CPU."""

    new = 8 if c.small else 24
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(6 if c.small else 32, 3, 40, 499, seed=2)
    model = c.tiny("llama")
    ways = {
        "rows_1": Engine(model, tokenizer, batch_size=1),
        "rows_5": Engine(model, tokenizer, batch_size=5),
        "no_cache": Engine(model, tokenizer, batch_size=32, cache_budget=0),
        "cpu": Engine(c.tiny("llama", device=torch.device("cpu")), tokenizer, batch_size=8),
    }
    reference = Engine(model, tokenizer, batch_size=32)
    out: Result = {"ok": True}
    totals: dict = {name: [] for name in [*ways, "reversed", "replayed"]}
    wanted: list = []
    for params in SAMPLING:
        given = {"max_new_tokens": new, **params}
        expected = tokens_of(reference, prompts, given)
        wanted += expected
        for name, engine in ways.items():
            totals[name] += tokens_of(engine, prompts, given)
        totals["reversed"] += tokens_of(Engine(model, tokenizer, batch_size=32), prompts[::-1], given)[::-1]
        totals["replayed"] += tokens_of(reference, prompts, given)
    for name, got in totals.items():
        out[name] = differing(wanted, got)
        out["ok"] &= got == wanted
    out["lookups"] = reference.stats.lookups
    return out


def bf16_share(c: Context) -> Result:
    """bf16: how many tokens depend on the batch. No verdict; the promise is made for float32."""

    new = 8 if c.small else 32
    tokenizer = c.tokenizer(499)
    prompts = c.prompts(6 if c.small else 32, 10, 60, 499, seed=3)
    model = c.tiny("llama", dtype=torch.bfloat16)
    out: Result = {"ok": None}
    for name, params in (
        ("greedy", {}),
        ("sampled", {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}),
    ):
        given = {"max_new_tokens": new, **params}
        engine = Engine(model, tokenizer, batch_size=32)
        wide = tokens_of(engine, prompts, given)
        one = tokens_of(Engine(model, tokenizer, batch_size=1), prompts, given)
        again = tokens_of(Engine(model, tokenizer, batch_size=32), prompts, given)
        out[f"{name}_32_rows_against_1"] = differing(wide, one)
        out[f"{name}_same_batch_again"] = differing(wide, again)
        out[f"{name}_replayed"] = differing(wide, tokens_of(engine, prompts, given))
        out[f"{name}_lookups"] = engine.stats.lookups
        if name == "greedy":
            theirs = [alone(model, tokenizer, p, max_new_tokens=new, do_sample=False) for p in prompts]
            out["greedy_against_generate"] = differing(wide, theirs)
    out["ok"] = out["greedy_replayed"]["rows_differ"] == 0 and out["sampled_replayed"]["rows_differ"] == 0
    return out
