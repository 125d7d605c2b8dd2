"""What a study costs: our engine against a good engineer's loop around `model.generate`, on the same work.

    python -m tests.benchmarks.study [--lists wide,concentrated,truncation,beam,few-shot] [--rows 32]

For each list of configurations three ways of decoding all of them are timed in one process, one after the other:

(a) loop    `model.generate` in left-padded, length-sorted batches of 16, configuration by configuration
(b) bare    our engine with nothing kept between requests (`cache_budget=0`)
(c) ours    our engine as it is

(a) and (b) do the same work again for every configuration, so `--sample k` times only every k-th of them there and
scales up; the line says so. SmolLM2-135M-Instruct in float32; the dialogues are the bundled ones unless `--data` names
a .jsonl file with a `dialogue` column.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from tests.engine_work import distance_from_floor, outside_share, rows_per_step

NEW_TOKENS = 48
IN_FLIGHT = 4
TARGETS = {"wide": 4.5, "concentrated": 6.0, "truncation": 15.0, "beam": 10.0, "few-shot": 12.0}
Configuration = dict[str, Any]


def wide() -> list[Configuration]:
    """24 random configurations over the whole of what people try."""
    rng = np.random.default_rng(1)
    return [
        {
            "do_sample": True,
            "temperature": round(float(rng.uniform(0.2, 1.5)), 3),
            "top_p": round(float(rng.uniform(0.5, 1.0)), 3),
            "top_k": int(rng.choice([0, 10, 50, 200])),
            "repetition_penalty": round(float(rng.uniform(1.0, 1.3)), 3),
        }
        for _ in range(24)
    ]


def concentrated() -> list[Configuration]:
    """24 random configurations where a study ends up: temperature .6-.9, top_p .8-1."""
    rng = np.random.default_rng(2)
    return [
        {
            "do_sample": True,
            "temperature": round(float(rng.uniform(0.6, 0.9)), 3),
            "top_p": round(float(rng.uniform(0.8, 1.0)), 3),
        }
        for _ in range(24)
    ]


def truncation() -> list[Configuration]:
    """24 configurations that differ only in max_new_tokens, stop and top_k."""
    base = {"do_sample": True, "temperature": 0.7}
    return [
        {**base, "top_k": top_k, "max_new_tokens": length, **({"stop": [stop]} if stop else {})}
        for top_k in (20, 50)
        for length in (16, 24, 32, 48)
        for stop in ("", ".", "\n")
    ]


def beam() -> list[Configuration]:
    """num_beams 1-6 with length_penalty .6, 1 and 1.4."""
    return [{"num_beams": k, "length_penalty": p} for k in range(1, 7) for p in (0.6, 1.0, 1.4)]


LISTS: dict[str, Callable[[], list[Configuration]]] = {
    "wide": wide,
    "concentrated": concentrated,
    "truncation": truncation,
    "beam": beam,
    "few-shot": concentrated,
}


def dialogues(path: str | None, rows: int) -> list[str]:
    """The first dialogues of a .jsonl file, or of the bundled one."""
    source = Path(path) if path else Path(__file__).parents[2] / "llmsearch_optuna" / "data" / "dialogues.jsonl"
    return [json.loads(line)["dialogue"] for line in source.read_text(encoding="utf-8").splitlines()[:rows]]


def few_shot_prefix(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int = 400) -> str:
    """About 400 tokens of examples that stand before each prompt."""
    text = "".join(f"Dialogue:\n{text}\n\n" for text in texts)
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:tokens])) + "\n\n"


def chat(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], params: Configuration
) -> int:
    """(a) Returns the tokens that came out."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    options = dict(params)
    if "stop" in options:
        options |= {"stop_strings": options.pop("stop"), "tokenizer": tokenizer}
    produced = 0
    for start in range(0, len(order), 16):
        texts = [prompts[i] for i in order[start : start + 16]]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            output = model.generate(**batch, **{"max_new_tokens": NEW_TOKENS, **options})
        produced += int((output[:, batch["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())
    return produced


def ours(engine: Engine, prompts: Sequence[str], configurations: Sequence[Configuration]) -> int:
    """(b), (c) As a study does it: four configurations in flight, the next one when the oldest is done."""
    waiting = [
        GenerationParams.of({"max_new_tokens": NEW_TOKENS, **configuration}, engine.default_params)
        for configuration in configurations
    ]
    left: dict[int, int] = {}
    produced = started = 0
    while started < len(waiting) or left:
        while started < len(waiting) and len(left) < IN_FLIGHT:
            engine.submit([Request(started, row, prompt, waiting[started]) for row, prompt in enumerate(prompts)])
            left[started] = len(prompts)
            started += 1
        for finished in engine.poll():
            if finished.completion is None:
                raise RuntimeError(finished.error)
            produced += len(finished.completion.token_ids)
            tag = finished.request.tag
            assert isinstance(tag, int)
            left[tag] -= 1
            if not left[tag]:
                del left[tag]
    return produced


def timed(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    produced = work()
    return time.perf_counter() - started, produced


def compare(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sample: int,
    ways: Sequence[str],
) -> None:
    configurations = LISTS[name]()
    prefix = few_shot_prefix(texts[::-1], tokenizer) if name == "few-shot" else ""
    prompts = [chat(tokenizer, f"{prefix}Summarize in one sentence:\n{text}") for text in texts]
    sampled = configurations[sample // 2 :: sample] if sample > 1 else configurations
    scale = len(configurations) / len(sampled)
    print(f"\n{name}: {len(configurations)} configurations x {len(prompts)} rows x {NEW_TOKENS} tokens", flush=True)
    note = f" (every {sample}th configuration timed, scaled)" if sample > 1 else ""
    seconds: dict[str, float] = {}
    if "a" in ways:
        spent, produced = timed(lambda: sum(loop(model, tokenizer, prompts, c) for c in sampled))
        seconds["a"] = spent * scale
        print(f"  (a) loop {seconds['a']:8.1f} s{note}, {produced / spent:.0f} tokens/s", flush=True)
    if "b" in ways:
        bare = Engine(model, tokenizer, cache_budget=0)
        spent, produced = timed(lambda: ours(bare, prompts, sampled))
        seconds["b"] = spent * scale
        print(f"  (b) bare {seconds['b']:8.1f} s{note}, {produced / spent:.0f} tokens/s", flush=True)
    engine = Engine(model, tokenizer)
    seconds["c"], produced = timed(lambda: ours(engine, prompts, configurations))
    stats = engine.stats
    print(
        f"  (c) ours {seconds['c']:8.1f} s, {produced / seconds['c']:.0f} tokens/s; "
        f"{stats.forward_tokens} forwards / {stats.distinct_prefixes} distinct prefixes "
        f"= {distance_from_floor(stats):.3f}; {stats.replayed_tokens} of {stats.tokens} tokens replayed; "
        f"{rows_per_step(stats):.1f} rows a step; {outside_share(stats):.0%} outside forward; "
        f"{stats.lookups} lookups; {stats.recomputed_tokens} recomputed; cache {stats.cache_bytes / 2**20:.0f} MiB",
        flush=True,
    )
    if "a" in seconds:
        reached = seconds["a"] / seconds["c"]
        print(f"  (a)/(c) = {reached:.1f} (target {TARGETS[name]})", flush=True)
    if "b" in seconds:
        print(f"  (b)/(c) = {seconds['b'] / seconds['c']:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", default=",".join(LISTS))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--sample", type=int, default=1, help="time only every k-th configuration in (a) and (b)")
    parser.add_argument("--ways", default="abc")
    parser.add_argument("--data", default=None)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    folder = demo_model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = dialogues(arguments.data, arguments.rows)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {len(texts)} dialogues")
    loop(model, tokenizer, [chat(tokenizer, texts[0])] * 2, {"max_new_tokens": 4})  # warm up
    for name in arguments.lists.split(","):
        compare(name, model, tokenizer, texts, arguments.sample, arguments.ways)


if __name__ == "__main__":
    main()
