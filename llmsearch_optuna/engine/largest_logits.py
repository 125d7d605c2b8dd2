"""The largest logits of each row, and the log-sum-exp over all of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

FEW_THREADS = 4
"""Up to so many threads numpy's vectorised partition, on one of them, beats torch's parallel search."""


def largest_logits(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the ``count`` largest of each row of ``[rows, vocab]``.

    Which of several equal logits are the last on the list is not defined.

    Returns:
        Values, descending, and ids ``[rows, count]``; log-sum-exp over the whole vocabulary ``[rows]``.
    """
    if logits.device.type != "cpu" or torch.get_num_threads() > FEW_THREADS:
        top = torch.topk(logits, count, dim=-1)
        return top.values, top.indices, torch.logsumexp(logits, dim=-1)
    totals = torch.empty(len(logits), dtype=torch.float32)
    values = torch.empty((len(logits), count), dtype=torch.float32)
    ids = torch.empty((len(logits), count), dtype=torch.int64)
    for row, scores in enumerate(logits):  # a row stays in the core's cache
        totals[row] = torch.logsumexp(scores, dim=-1)
        if totals[row].isfinite():
            found, places = _largest_of_row(scores.numpy(), count)
            values[row], ids[row] = torch.from_numpy(found), torch.from_numpy(places)
        else:  # NaN has no place in an order
            values[row], ids[row] = torch.topk(scores, count)
    return values, ids, totals


def _largest_of_row(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(scores >= last)
    order = np.argsort(-scores[places], kind="stable")[:count]
    places = places[order]
    return scores[places], places
