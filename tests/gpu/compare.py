"""Tokens of two ways of decoding, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tests.gpu.context import Result


def tokens_of(engine: Any, prompts: Sequence[str], params: Mapping[str, Any]) -> list[tuple[int, ...]]:
    return [c.token_ids for c in engine.generate(prompts, params)]


def alone(model: Any, tokenizer: Any, prompt: str, **options: Any) -> tuple[int, ...]:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return tuple(out[0, ids.shape[1] :].tolist())


def differing(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> Result:
    """How many rows, and how many tokens of them, differ; tokens count up to and behind the first difference."""
    rows = sum(x != y for x, y in zip(a, b, strict=True))
    tokens = sum(
        sum(p != q for p, q in zip(x, y, strict=False)) + abs(len(x) - len(y)) for x, y in zip(a, b, strict=True)
    )
    first = [
        next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), None) for x, y in zip(a, b, strict=True)
    ]
    places = [f for f in first if f is not None]
    total = sum(len(x) for x in a)
    steps = sum(len(x) if f is None else f + 1 for x, f in zip(a, first, strict=True))
    return {
        "rows": len(a), "rows_differ": rows, "tokens": total, "tokens_differ": tokens,
        "first_differences_per_token": round(len(places) / max(1, steps), 6),
    }  # fmt: skip
