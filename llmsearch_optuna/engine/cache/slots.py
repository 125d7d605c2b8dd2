"""The slot buffer: one tensor that holds the keys and values of all rows that are being decoded.

Rows are right-aligned at a shared write column, so that every step writes one column for all of them and
nothing is concatenated. Joining copies a row in, leaving moves the last row into the hole. What a row means,
and which row goes on, is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from llmsearch_optuna.engine.cache.cache_shape import CacheShape, Segment
from llmsearch_optuna.engine.cache.slot_part import parts_of

SPARE_COLUMNS = 64


def shape_of(cache: Cache) -> CacheShape | str:
    """Read the shape off a filled cache, or say why its rows cannot be cut out and put together.

    Args:
        cache: A ``DynamicCache`` after one forward pass of one row.
    """
    shapes, devices = set(), []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer):
            return f"its cache keeps a {type(layer).__name__}, whose state cannot be cut by position"
        if not layer.is_initialized:
            return "it leaves layers of its cache empty, so that its state is elsewhere"
        if layer.keys is None or layer.values is None or layer.keys.shape != layer.values.shape:
            return "its keys and values differ in shape"
        if layer.keys.ndim != 4:
            return "its cache layers are not of the form [rows, heads, tokens, head_dim]"
        shapes.add((layer.keys.shape[1], layer.keys.shape[3], layer.keys.dtype))
        devices.append(layer.keys.device)
    if not shapes:
        return "it fills no cache"
    if len(shapes) > 1:
        return "its layers keep caches of different shapes"
    several = tuple(devices) if len(set(devices)) > 1 else ()
    return CacheShape(len(cache.layers), *shapes.pop(), devices[0], several)


def extract(cache: Cache, row: int, first: int, last: int) -> Segment:
    """Copy the tokens ``first`` to ``last`` (exclusive) of one row out of a filled cache."""
    filled = [(layer.keys, layer.values) for layer in cache.layers if isinstance(layer, DynamicLayer)]
    home = next(keys.device for keys, _ in filled if keys is not None)
    keys = torch.stack([keys[row, :, first:last].to(home) for keys, _ in filled if keys is not None])
    values = torch.stack([values[row, :, first:last].to(home) for _, values in filled if values is not None])
    return torch.stack((keys, values), dim=1)


def assemble(
    segments: Sequence[Segment], rows: int, device: torch.device, devices: Sequence[torch.device] = ()
) -> DynamicCache:
    """Make a cache in which each of ``rows`` rows holds these segments one after the other.

    Args:
        segments: Keys and values.
        rows: How many rows.
        device: Where the cache is.
        devices: Where each layer is, if they are on several devices.
    """
    cache = DynamicCache()
    if not segments:
        return cache
    joined = torch.cat([segment.to(device) for segment in segments], dim=3)
    expanded = joined.unsqueeze(2).expand(-1, -1, rows, -1, -1, -1)  # [layers, 2, rows, heads, tokens, dim]
    for index, layer in enumerate(expanded):
        keys, values = layer.to(devices[index]) if devices else layer
        cache.update(keys, values, index)
    return cache


class SlotLayer(DynamicLayer):
    """One layer's window into the buffer, in the form that the model's attention asks for.

    Overrides ``update``, ``get_seq_length`` and ``get_mask_sizes`` of transformers' ``DynamicLayer``
    (5.23; the tests notice when a model stops calling them).
    """

    def __init__(self, buffer: SlotBuffer, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffer = buffer
        self._index = index
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[rows, heads, 1, head_dim]`` at the write column; return all visible columns."""
        return self._buffer.write(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        """Visible columns before this step."""
        return self._buffer.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the attention mask and their offset."""
        return self._buffer.width + query_length, 0


class CrossLayer(DynamicLayer):
    """One layer's window into the cross-attention rows; an encoder-decoder model reads it and never writes."""

    def __init__(self, rows: CrossRows, index: int) -> None:
        self._rows = rows
        self._index = index
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True

    @property
    def keys(self) -> torch.Tensor:
        """``[rows, heads, width, head_dim]``"""
        return self._rows.view(self._index, 0)

    @keys.setter
    def keys(self, _: object) -> None:
        """The base class clears it when it is made."""

    @property
    def values(self) -> torch.Tensor:
        """``[rows, heads, width, head_dim]``"""
        return self._rows.view(self._index, 1)

    @values.setter
    def values(self, _: object) -> None:
        """The base class clears it when it is made."""

    def get_seq_length(self) -> int:
        """Encoder tokens of the longest row."""
        return self._rows.width


class CrossRows:
    """What the rows of a slot buffer attend to in an encoder-decoder model, padded on the right.

    Rows come, fork and go together with those of the slot buffer that it belongs to.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.lengths: list[int] = []
        self._data: torch.Tensor | None = None
        self.cache = Cache(layers=[CrossLayer(self, index) for index in range(shape.layers)])

    @property
    def width(self) -> int:
        """Encoder tokens of the longest row."""
        return max(self.lengths, default=0)

    def view(self, layer: int, part: int) -> torch.Tensor:
        """Keys (part 0) or values (part 1) of one layer, as far as some row uses them."""
        if self._data is None:
            return torch.zeros(0, dtype=self.shape.dtype, device=self.shape.device)
        return self._data[layer, part, : len(self.lengths), :, : self.width]

    def mask(self) -> torch.Tensor:
        """Which encoder tokens are real, ``[rows, width]`` of 0 and 1."""
        lengths = torch.tensor(self.lengths, device=self.shape.device)
        return (torch.arange(self.width, device=self.shape.device) < lengths[:, None]).long()

    def make_room(self, rows: int, length: int) -> None:
        """Prepare for ``rows`` rows in all, of up to ``length`` tokens."""
        old, shape = self._data, self.shape
        slots, capacity = (0, 0) if old is None else (old.shape[2], old.shape[4])
        if rows <= slots and length <= capacity:
            return
        dimensions = (shape.layers, 2, max(rows, slots), shape.heads, max(length, capacity), shape.head_dim)
        data = torch.zeros(dimensions, dtype=shape.dtype, device=shape.device)
        if old is not None:
            data[:, :, :slots, :, :capacity] = old
        self._data = data

    def join(self, segment: Segment) -> None:
        """Add a row behind the others."""
        length, row = segment.shape[3], len(self.lengths)
        self.make_room(row + 1, length)
        assert self._data is not None
        self._data[:, :, row, :, :length] = segment
        self.lengths.append(length)

    def fork(self, slot: int) -> None:
        """Add a copy of a row behind the others."""
        assert self._data is not None
        self.join(self._data[:, :, slot, :, : self.lengths[slot]].clone())

    def leave(self, slot: int) -> None:
        """Take a row out; the last one moves into its place."""
        assert self._data is not None
        last = len(self.lengths) - 1
        self._data[:, :, slot] = self._data[:, :, last]
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()

    def clear(self) -> None:
        """Give all memory back and forget all rows."""
        self.lengths = []
        self._data = None


class SlotBuffer:
    """Keys and values of up to ``slots`` rows, right-aligned at one write column.

    The data is in parts of consecutive layers, so that layers may be on different devices, and moving into more memory
    takes twice the memory of one part only.

    Args:
        shape: What one token occupies.
        slots: Rows it can hold at the start; it grows when asked to.
        cross: What the rows attend to beside themselves, in an encoder-decoder model.

    Attributes:
        derived: What others have built upon the data; forgotten when the data moves to another place.
    """

    def __init__(self, shape: CacheShape, slots: int, cross: CrossRows | None = None) -> None:
        self.shape = shape
        self.cross = cross
        self.lengths: list[int] = []
        self._slots = max(1, slots)
        self._parts = parts_of(shape)
        self._part_of = [part for part in self._parts for _ in range(part.layers.start, part.layers.stop)]
        self.derived: dict[Any, Any] = {}
        self.cache = Cache(layers=[SlotLayer(self, index) for index in range(shape.layers)])

    @property
    def rows(self) -> int:
        """Rows that are in the buffer now; they are the slots 0 to rows - 1."""
        return len(self.lengths)

    @property
    def slots(self) -> int:
        """Rows that it has memory for."""
        return min(part.slots for part in self._parts)

    @property
    def capacity(self) -> int:
        """Columns that it has memory for."""
        return min(part.capacity for part in self._parts)

    @property
    def width(self) -> int:
        """Columns that some row uses: the length of the longest row."""
        return max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        """Bytes that the buffer occupies."""
        return sum(part.nbytes for part in self._parts)

    @property
    def column(self) -> int:
        """The column that the coming step writes."""
        return self._parts[0].column

    def layers(self, rows: int, columns: int) -> list[torch.Tensor]:
        """The first rows and columns of each layer, ``[2, rows, heads, columns, head_dim]``."""
        return [layer for part in self._parts for layer in part.data[:, :, :rows, :, :columns]]

    def make_room(self, rows: int, length: int) -> None:
        """Prepare for ``rows`` rows in all, of up to ``length`` tokens, in one move; joining them moves nothing."""
        if any(rows > part.slots or length > part.column for part in self._parts):
            self._realign(rows, max(length, self.width))

    def join(self, segments: Sequence[Segment], cross: Segment | None = None) -> int:
        """Copy a row in (and what it attends to beside itself); returns its slot."""
        length = sum(segment.shape[3] for segment in segments)
        self.make_room(len(self.lengths) + 1, length)
        slot = len(self.lengths)
        for part in self._parts:
            part.join(slot, segments, length)
        if self.cross is not None and cross is not None:
            self.cross.join(cross)
        self.lengths.append(length)
        return slot

    def fork(self, slot: int) -> int:
        """Copy a row that is in the buffer; returns the copy's slot."""
        length = self.lengths[slot]
        self.make_room(len(self.lengths) + 1, length)
        copy = len(self.lengths)
        for part in self._parts:
            part.copy_row(slot, copy, length)
        if self.cross is not None:
            self.cross.fork(slot)
        self.lengths.append(length)
        return copy

    def leave(self, slot: int) -> int:
        """Take a row out; returns the slot whose row has moved into its place (``slot`` if none has)."""
        last = len(self.lengths) - 1
        if slot != last:
            for part in self._parts:
                part.copy_row(last, slot, self.lengths[last])
            self.lengths[slot] = self.lengths[last]
        if self.cross is not None:
            self.cross.leave(slot)
        self.lengths.pop()
        return last

    def read(self, slot: int, first: int, last: int) -> Segment:
        """Copy the tokens ``first`` to ``last`` (exclusive) of a row out of the buffer."""
        start = first - self.lengths[slot]
        found = [part.tokens(slot, start, start + last - first).to(self.shape.device) for part in self._parts]
        return found[0].clone() if len(found) == 1 else torch.cat(found)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one column of one layer (``[rows, heads, 1, head_dim]``); return the visible columns."""
        return self._part_of[layer].write(layer, keys, values, self.width)

    def attention_mask(self) -> torch.Tensor:
        """Mask of the coming step, ``[rows, width + 1]`` of 0 and 1."""
        width = self.width
        lengths = torch.tensor(self.lengths, device=self.shape.device)
        columns = torch.arange(width + 1, device=self.shape.device)
        return (columns >= (width - lengths)[:, None]).long()

    def reserve_step(self) -> None:
        """Make sure that the coming step has a column to write to; may move or grow the data."""
        column = self._parts[0].column
        if any(part.column != column or column + 1 > part.capacity for part in self._parts):
            self._realign(len(self.lengths), self.width)

    def commit_step(self) -> None:
        """Count the column that a step has written; before this call the step can be repeated."""
        for part in self._parts:
            part.column += 1
        self.lengths = [length + 1 for length in self.lengths]

    def clear(self) -> None:
        """Give all memory back and forget all rows."""
        if self.cross is not None:
            self.cross.clear()
        self.lengths = []
        self.derived = {}
        self._slots = 1
        for part in self._parts:
            part.clear()

    def _realign(self, rows: int, width: int) -> None:
        """Move all rows so that the write column is ``width``, into larger tensors when they need some.

        Every row is where it was when allocating a larger tensor fails: parts that have moved know it.
        """
        n, kept = len(self.lengths), self.width
        slots = self._slots if rows <= self._slots else max(rows, self._slots * 2)
        capacity = max(width + SPARE_COLUMNS, self._parts[0].capacity)
        for part in self._parts:
            if (part.slots, part.capacity) != (slots, capacity):
                self.derived = {}
            part.realign(n, kept, width, slots, capacity)
        self._slots = slots
