"""Finds logits that are no numbers inside ``model.generate``, without a synchronisation at every step."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from llmsearch_optuna.errors import DecodingError

_NEVER = torch.iinfo(torch.int64).max


class NumbersOnly(LogitsProcessor):
    """Notes where a row first had NaN or infinite logits, and lets it go on with equal ones.

    Going on keeps the other rows of the batch decoding, and a GPU from ending the process where NaN is drawn from.
    Minus infinity is what other processors remove tokens with.

    Args:
        rows: How many rows the batch has; with beams each has several lines of scores.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._first: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows * beams, vocab]``, those of lines that are no numbers as zeros."""
        bad = (scores.isnan() | scores.isposinf()).any(dim=-1)
        row_is_bad = bad.view(self._rows, -1).any(dim=-1)
        if self._first is None:
            self._first = torch.full_like(row_is_bad, _NEVER, dtype=torch.int64)
        met = torch.full_like(self._first, input_ids.shape[-1])
        self._first = torch.where(row_is_bad, torch.minimum(self._first, met), self._first)
        return torch.where(bad[:, None], 0.0, scores)

    def lengths(self) -> list[int | None]:
        """For each row how many tokens stood before the first logits that were no numbers; None where all were."""
        found = [_NEVER] * self._rows if self._first is None else self._first.tolist()
        return [None if length == _NEVER else length for length in found]


def not_numbers(new_tokens: int, dtype: torch.dtype) -> DecodingError:
    """Return the error of a row whose logits after so many new tokens are NaN or infinite."""
    name = str(dtype).removeprefix("torch.")
    return DecodingError(
        f"the logits after {new_tokens} new tokens are not numbers (NaN or infinite), in {name}; "
        f"{'look at the weights' if name == 'float32' else 'try bfloat16 or float32'}"
    )
