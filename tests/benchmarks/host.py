"""What the host does for a row and a step outside the model: picking, walking, storing.

    python -m tests.benchmarks.host [--rows 256] [--steps 24] [--only greedy,top_k]

A small random model stands for a large one: 49,152 tokens with logits about as far from flat as those of a real model
(their deviation is 6), so that sampling looks at as many candidates. Thread time is counted; the forward pass, the
output head (with giving back the memory of its logits) and the search for the largest logits are taken off. "computing"
decodes for the first time, "replaying" decodes the same once more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmsearch_optuna.engine import model_runner
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner
from tests.gpu.context import Context, plain_generation

VOCABULARY = 49_152
DEVIATION = 6.0
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top_k": {"do_sample": True, "temperature": 0.7, "top_k": 50},
    "top_p": {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
    "penalty": {"do_sample": True, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
    "typical": {"do_sample": True, "top_k": 0, "typical_p": 0.9, "top_p": 0.98},
    "untruncated": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    context = Context(small=True)
    model, tokenizer = make_model(), context.tokenizer(VOCABULARY)
    for name, params in CONFIGURATIONS.items():
        if arguments.only and name not in arguments.only.split(","):
            continue
        rows = arguments.rows // params.get("num_beams", 1)
        prompts = context.prompts(rows, 8, 12, VOCABULARY)
        engine = Engine(model, tokenizer, batch_size=arguments.rows, cache_budget=2 * 10**9)
        engine.generate(prompts[:2], {"max_new_tokens": 2, **params})
        engine.generate(prompts, {"max_new_tokens": 1, **params})
        given = {"max_new_tokens": arguments.steps, **params}
        picks = rows * (arguments.steps - 1) * params.get("num_beams", 1)
        line = {"configuration": name}
        for way in ("computing", "replaying"):
            line[way] = f"{outside(lambda: engine.generate(prompts, given)) / picks * 1e6:.1f} µs"  # noqa: B023
        line["lookups"] = str(engine.stats.lookups)
        print(json.dumps(line, ensure_ascii=False), flush=True)


def make_model() -> Any:
    """A Llama of one narrow layer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, DEVIATION / 32**0.5)
    return plain_generation(model).eval()


def outside(work: Callable[[], object]) -> float:
    """Thread seconds of some work, without those inside the model, its head and the search for the largest."""
    spent: list[float] = [0.0]
    with ExitStack() as stack:
        for owner, name in ((ModelRunner, "_states"), (ModelRunner, "logits"), (model_runner, "largest_logits")):
            stack.enter_context(_timed(owner, name, spent))
        begun = time.thread_time()
        work()
        return time.thread_time() - begun - spent[0]


@contextmanager
def _timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Count the time of a function, and keep what it returned last: giving it back is counted with the next call."""
    real, kept = getattr(owner, name), [None]

    def timed(*given: Any, **named: Any) -> Any:
        begun = time.thread_time()
        try:
            kept[0] = None
            kept[0] = real(*given, **named)
            return kept[0]
        finally:
            spent[0] += time.thread_time() - begun

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, real)


if __name__ == "__main__":
    main()
