"""How many tokens depend on the batch in float32 and in half precision.

    python -m tests.benchmarks.precision [--rows 32] [--tokens 48]

SmolLM2-135M-Instruct on the bundled dialogues, in both precisions. Greedy: our engine with batches of 16 and
``model.generate`` with left-padded batches of 16, each beside ``model.generate`` on one unpadded prompt at a time.
Sampling: our engine with batches of 16 beside batches of 1. Rows count as different when any token differs; tokens are
counted from the first difference on, since a text that went another way has nothing to compare.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmsearch_optuna import Engine
from llmsearch_optuna.demo.model import demo_model_folder
from tests.benchmarks.study import chat, dialogues

Tokens = list[list[int]]
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}


def engine(model: Any, tokenizer: Any, prompts: Sequence[str], params: dict[str, Any], batch_size: int) -> Tokens:
    found = Engine(model, tokenizer, batch_size=batch_size).generate(prompts, params)
    return [list(completion.token_ids) for completion in found]


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], params: dict[str, Any], batch_size: int) -> Tokens:
    """New tokens up to and with the one that ends the text."""
    found: Tokens = []
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        for row in model.generate(**batch, **params)[:, batch["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token == tokenizer.eos_token_id]
            found.append(row[: ends[0] + 1] if ends else row)
    return found


def difference(found: Tokens, expected: Tokens) -> str:
    """Shares of rows and tokens that differ."""
    rows = tokens = 0
    for ours, theirs in zip(found, expected, strict=True):
        first = next((i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b), None)
        if first is not None:
            rows += 1
            tokens += max(len(ours), len(theirs)) - first
    total = sum(map(len, expected))
    return f"{rows} of {len(expected)} rows, {tokens} of {total} tokens ({tokens / total:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    folder = demo_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = dialogues(None, arguments.rows)
    prompts = [chat(tokenizer, f"Summarize in one sentence:\n{text}") for text in texts]
    greedy = {"max_new_tokens": arguments.tokens, "do_sample": False}
    sampling = {"max_new_tokens": arguments.tokens, **SAMPLING}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        alone = generate(model, tokenizer, prompts, greedy, 1)
        print(f"{dtype}, different from generate on one prompt at a time, or from batches of 1:")
        print(
            f"  greedy, engine in batches of 16:    {difference(engine(model, tokenizer, prompts, greedy, 16), alone)}"
        )
        batched = generate(model, tokenizer, prompts, greedy, 16)
        print(f"  greedy, generate in batches of 16:  {difference(batched, alone)}")
        drawn = [engine(model, tokenizer, prompts, sampling, batch_size) for batch_size in (16, 1)]
        print(f"  sampling, engine in batches of 16:  {difference(*drawn)}", flush=True)


if __name__ == "__main__":
    main()
