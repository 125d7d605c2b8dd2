"""The largest logits of many rows, as the sampler reads them on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
