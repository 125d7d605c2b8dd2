"""Some consecutive layers of a slot buffer, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from llmsearch_optuna.engine.cache.cache_shape import CacheShape, Segment

PARTS_ON_A_DEVICE = 4
"""Moving into more memory takes twice the memory of one part. On a CPU one part is enough: it copies in pieces."""


class SlotPart:
    """Keys and values of these layers for all rows, right-aligned at the part's own write column.

    The data is ``[layers, 2, slots, heads, capacity, head_dim]``; a row of some length occupies the columns from
    ``column - length`` to ``column`` (exclusive).

    Args:
        shape: What one token occupies.
        layers: Which layers these are.
        device: Where they are.

    Attributes:
        column: The column that the coming step writes.
    """

    def __init__(self, shape: CacheShape, layers: slice, device: torch.device) -> None:
        self.layers = layers
        self.column = 0
        self._shape = shape
        self.device = device
        self._data: torch.Tensor | None = None

    @property
    def data(self) -> torch.Tensor:
        """All keys and values."""
        if self._data is None:
            raise RuntimeError("the slot buffer holds no rows")
        return self._data

    @property
    def slots(self) -> int:
        """Rows that it has memory for."""
        return 0 if self._data is None else int(self._data.shape[2])

    @property
    def capacity(self) -> int:
        """Columns that it has memory for."""
        return 0 if self._data is None else int(self._data.shape[4])

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""
        return 0 if self._data is None else self._data.nbytes

    def join(self, slot: int, segments: Sequence[Segment], length: int) -> None:
        """Copy segments of all layers, ``length`` tokens together, into a row."""
        start = self.column - length
        for segment in segments:
            end = start + segment.shape[3]
            self.data[:, :, slot, :, start:end].copy_(segment[self.layers])
            start = end

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy one row over another."""
        columns = slice(self.column - length, self.column)
        self.data[:, :, target, :, columns] = self.data[:, :, source, :, columns]

    def tokens(self, slot: int, first: int, last: int) -> Segment:
        """Some tokens of a row, by their distance from the write column (below 0; ``last`` is exclusive)."""
        return self.data[:, :, slot, :, self.column + first : self.column + last]

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one column of a layer (``[rows, heads, 1, head_dim]``); return ``width`` columns and this one."""
        data, rows, end = self.data[layer - self.layers.start], len(keys), self.column + 1
        data[0, :rows, :, self.column : end] = keys
        data[1, :rows, :, self.column : end] = values
        start = self.column - width
        return data[0, :rows, :, start:end], data[1, :rows, :, start:end]

    def realign(self, rows: int, kept: int, column: int, slots: int, capacity: int) -> None:
        """Move the last ``kept`` columns of the first rows to the front of another write column.

        Nothing has changed when allocating memory for more slots or columns fails.
        """
        old, old_end = self._data, self.column
        if old is None or (slots, capacity) != (self.slots, self.capacity):
            shape = self._shape
            layers = self.layers.stop - self.layers.start
            # zeros: masked columns are multiplied by a weight of 0, and 0 * NaN would be NaN
            dimensions = (layers, 2, slots, shape.heads, capacity, shape.head_dim)
            self._data = torch.zeros(dimensions, dtype=shape.dtype, device=self.device)
        if old is not None and rows:
            moved = old[:, :, :rows, :, old_end - kept : old_end]
            overlaps = self._data is old
            self.data[:, :, :rows, :, column - kept : column] = moved.clone() if overlaps else moved
        self.column = column

    def clear(self) -> None:
        """Give the memory back."""
        self._data = None
        self.column = 0


def parts_of(shape: CacheShape) -> list[SlotPart]:
    """Empty parts for all layers."""
    parts, first = [], 0
    for device, layers in devices_of(shape):
        pieces = 1 if device.type == "cpu" else PARTS_ON_A_DEVICE
        size = -(-layers // pieces)
        for begin in range(first, first + layers, size):
            parts.append(SlotPart(shape, slice(begin, min(begin + size, first + layers)), device))
        first += layers
    return parts


def devices_of(shape: CacheShape) -> list[tuple[torch.device, int]]:
    """The devices in the order of the layers, and how many consecutive layers are on each."""
    return [(device, len(list(group))) for device, group in groupby(shape.devices or (shape.device,) * shape.layers)]
