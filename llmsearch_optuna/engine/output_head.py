"""From hidden states to logits: the head's matrix, and what some architectures do to its result.

What is done to it is found out by trying. Where it is none of these, all logits of a prefix have to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

Finish = Callable[[torch.Tensor], torch.Tensor]
"""What comes behind the head's matrix: ``[rows, vocab]`` to the same."""


def finish_of(config: Any, raw: torch.Tensor, logits: torch.Tensor) -> Finish | None:
    """What makes the model's own logits of the head's result; None where nothing here does.

    Args:
        config: The configuration of the model's text part.
        raw: What the head makes of some states.
        logits: What the model makes of them.
    """
    return next((finish for finish in _finishes(config) if _are_equal(finish(raw), logits)), None)


def _are_equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted.to(found.device), rtol=1e-5, atol=1e-5, equal_nan=True)


def _finishes(config: Any) -> Iterator[Finish]:
    """In the arithmetic of transformers (5.23), so that float32 logits have the same bits."""
    yield _unchanged
    if cap := _number(config, "final_logit_softcapping"):  # Gemma 2 and 4, NanoChat
        yield lambda logits: torch.tanh(logits / cap) * cap
    if factor := _number(config, "logit_scale"):  # Cohere
        yield lambda logits: logits * factor
    if scaling := _number(config, "logits_scaling"):  # Granite divides by it, HyperCLOVA X multiplies
        yield lambda logits: logits / scaling
        yield lambda logits: logits * scaling


def _unchanged(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int | float) else None
