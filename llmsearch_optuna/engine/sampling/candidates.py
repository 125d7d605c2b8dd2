"""The largest logits: what is stored of them after a prefix, and what the sampler reads of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class NextTokenScores:
    """The raw scores that follow one prefix, as much of them as sampling needs.

    Attributes:
        values: The largest logits, descending, float32 ``[top]``.
        ids: Their token ids, int32 ``[top]``.
        log_total: Logarithm of the sum of exponentials over the whole vocabulary.
        state: What gives all logits back: the hidden state ``[hidden]``, or the logits themselves.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.int32]
    log_total: float
    state: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that the scores take."""
        return self.values.nbytes + self.ids.nbytes + self.state.nbytes + 8


@dataclass(frozen=True, slots=True)
class Candidates:
    """The largest logits of each row.

    Attributes:
        values: ``[rows, K]`` float32, descending.
        ids: ``[rows, K]``, the tokens they belong to.
        log_total: ``[rows]`` float64, the log-sum-exp over the whole vocabulary.
        vocab_size: How many logits there are.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.integer[Any]]
    log_total: NDArray[np.float64]
    vocab_size: int

    @classmethod
    def of(cls, scores: Sequence[NextTokenScores], vocab_size: int) -> Candidates:
        """Return the candidates of rows whose scores are stored, in their order."""
        return cls(
            np.stack([row.values for row in scores]),
            np.stack([row.ids for row in scores]),
            np.array([row.log_total for row in scores]),
            vocab_size,
        )
