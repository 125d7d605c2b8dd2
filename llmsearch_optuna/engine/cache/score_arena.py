"""Next-token scores of many prefixes in a few large arrays on the model's device, a row for each.

A pass stores all its rows at once and reading takes as many rows at once as are wanted, so that neither costs an
object or a copy for each row. A row is free again when the last reference to its scores goes; memory in which no row
is in use is given back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.candidates import Candidates

FIRST_ROWS = 64
"""Rows of the first chunk; every further one has twice as many, up to a limit in bytes."""

CHUNK_BYTES = 2**26


class NextTokenScores:
    """The raw scores that follow one prefix, as much of them as picking needs: one row of a chunk."""

    __slots__ = ("_chunk", "_row")

    def __init__(self, chunk: _Chunk, row: int) -> None:
        self._chunk = chunk
        self._row = row

    def __del__(self) -> None:
        self._chunk.free(self._row)

    @property
    def values(self) -> NDArray[np.float32]:
        """The largest logits, descending, ``[top]``."""
        found: NDArray[np.float32] = self._chunk.values[self._row].cpu().numpy()
        return found

    @property
    def ids(self) -> NDArray[np.int32]:
        """Their token ids, ``[top]``."""
        found: NDArray[np.int32] = self._chunk.ids[self._row].cpu().numpy()
        return found

    @property
    def log_total(self) -> float:
        """Logarithm of the sum of exponentials over the whole vocabulary."""
        return float(self._chunk.totals[self._row])

    @property
    def state(self) -> torch.Tensor:
        """What gives all logits back: the hidden state ``[hidden]``, or the logits themselves."""
        return self._chunk.states[self._row]

    @property
    def nbytes(self) -> int:
        """Bytes of the row."""
        return self._chunk.row_bytes


class ScoreArena:
    """Stores scores and reads them; all that are stored in one arena have the same sizes."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []

    @property
    def nbytes(self) -> int:
        """Bytes that its chunks occupy."""
        return sum(chunk.rows * chunk.row_bytes for chunk in self._chunks)

    def store(
        self, values: torch.Tensor, ids: torch.Tensor, totals: torch.Tensor, states: torch.Tensor
    ) -> list[NextTokenScores]:
        """Keep copies of what follows some prefixes.

        Args:
            values, ids: The largest logits and their tokens, ``[rows, top]``.
            totals: Log-sum-exp over the whole vocabulary, ``[rows]``.
            states: What gives all logits back, ``[rows, state]``.

        Returns:
            Where each row is; it stays there for as long as this is referred to.
        """
        stored: list[NextTokenScores] = []
        while len(stored) < len(values):
            chunk = next((chunk for chunk in self._chunks if chunk.vacant), None)
            if chunk is None:
                chunk = self._grow(values, states)
            first = len(stored)
            rows = chunk.take(len(values) - first)
            part = slice(first, first + len(rows))
            stored += [NextTokenScores(chunk, row) for row in rows]
            chunk.write(rows, values[part], ids[part], totals[part], states[part])
        return stored

    def _grow(self, values: torch.Tensor, states: torch.Tensor) -> _Chunk:
        self._chunks = [chunk for chunk in self._chunks if len(chunk.vacant) < chunk.rows]
        row_bytes = 8 * values.shape[1] + states[0].nbytes + 8
        wanted = max((2 * chunk.rows for chunk in self._chunks), default=FIRST_ROWS)
        chunk = _Chunk(self, max(1, min(wanted, max(FIRST_ROWS // 4, CHUNK_BYTES // row_bytes))), values, states)
        self._chunks.append(chunk)
        return chunk

    def forget(self, chunk: _Chunk) -> None:
        """Give back a chunk in which no row is in use, unless it is the only one."""
        if len(self._chunks) > 1:
            self._chunks.remove(chunk)


class _Chunk:
    __slots__ = ("_arena", "ids", "row_bytes", "rows", "states", "totals", "vacant", "values")

    def __init__(self, arena: ScoreArena, rows: int, values: torch.Tensor, states: torch.Tensor) -> None:
        device, top = values.device, values.shape[1]
        self._arena = arena
        self.rows = rows
        self.row_bytes = 8 * top + states[0].nbytes + 8
        self.values = torch.empty((rows, top), dtype=torch.float32, device=device)
        self.ids = torch.empty((rows, top), dtype=torch.int32, device=device)
        self.totals = torch.empty(rows, dtype=torch.float32, device=device)
        self.states = torch.empty((rows, states.shape[1]), dtype=states.dtype, device=states.device)
        self.vacant = list(range(rows - 1, -1, -1))

    def take(self, wanted: int) -> list[int]:
        """Up to so many rows that are not in use."""
        kept = max(0, len(self.vacant) - wanted)
        rows = self.vacant[kept:][::-1]
        del self.vacant[kept:]
        return rows

    def write(
        self, rows: list[int], values: torch.Tensor, ids: torch.Tensor, totals: torch.Tensor, states: torch.Tensor
    ) -> None:
        places = torch.tensor(rows, device=self.values.device)
        self.values.index_copy_(0, places, values)
        self.ids.index_copy_(0, places, ids.to(torch.int32))
        self.totals.index_copy_(0, places, totals)
        self.states.index_copy_(0, places.to(self.states.device), states)

    def free(self, row: int) -> None:
        self.vacant.append(row)
        if len(self.vacant) == self.rows:
            self._arena.forget(self)


def listed(
    scores: Sequence[NextTokenScores], width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest ``width`` logits of some prefixes, on their device.

    Returns:
        Values and ids ``[rows, width]``, and the log-sum-exp over the whole vocabulary ``[rows]``.
    """
    parts = [
        (chunk.values[places, :width], chunk.ids[places, :width], chunk.totals[places])
        for chunk, places in _by_chunk(scores)
    ]
    values, ids, totals = (_in_order(scores, [part[i] for part in parts]) for i in range(3))
    return values, ids, totals


def candidates_of(scores: Sequence[NextTokenScores], vocab_size: int, width: int | None = None) -> Candidates:
    """The largest ``width`` logits of some prefixes, on the host; from a device they come in one copy."""
    values, ids, totals = listed(scores, width)
    if values.device.type != "cpu":
        packed = torch.cat((values.view(torch.int32), ids, totals.view(torch.int32)[:, None]), dim=1).cpu()
        top = values.shape[1]
        values, totals = packed[:, :top].view(torch.float32), packed[:, -1].contiguous().view(torch.float32)
        ids = packed[:, top:-1]
    return Candidates(values.numpy(), ids.numpy(), totals.numpy().astype(np.float64), vocab_size)


def states_of(scores: Sequence[NextTokenScores]) -> torch.Tensor:
    """What gives all logits of some prefixes back, ``[rows, state]``."""
    return _in_order(scores, [chunk.states[places.to(chunk.states.device)] for chunk, places in _by_chunk(scores)])


def _by_chunk(scores: Sequence[NextTokenScores]) -> list[tuple[_Chunk, torch.Tensor]]:
    """The chunks in the order of their first row here, and the rows that are wanted of each."""
    rows: dict[_Chunk, list[int]] = {}
    for item in scores:
        rows.setdefault(item._chunk, []).append(item._row)
    return [(chunk, torch.tensor(places, device=chunk.values.device)) for chunk, places in rows.items()]


def _in_order(scores: Sequence[NextTokenScores], parts: list[torch.Tensor]) -> torch.Tensor:
    """Put what was read chunk by chunk into the order of the scores."""
    if len(parts) == 1:
        return parts[0]
    order: dict[_Chunk, list[int]] = {}
    for place, item in enumerate(scores):
        order.setdefault(item._chunk, []).append(place)
    places = torch.tensor([place for part in order.values() for place in part], device=parts[0].device)
    joined = torch.cat(parts)
    return torch.empty_like(joined).index_copy_(0, places, joined)
