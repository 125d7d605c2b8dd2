"""The decoding step in static shapes, so that a CUDA graph can repeat it.

An eager step launches hundreds of kernels, which takes the host longer than the device needs to run them. Here the
numbers of rows and of columns are rounded up to a few sizes, the column that is written is a number on the device,
and transformers builds its masks as it does for a static cache. A shape that comes again is captured and replayed.
What a step writes does not change when it is run twice, so that a failed one can be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from llmsearch_optuna.engine.cache.slots import SlotBuffer
from llmsearch_optuna.engine.memory import is_out_of_memory

logger = logging.getLogger("llmsearch_optuna.engine")

Body = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""The model: token ids, mask, positions (``[rows, 1]``, ``[rows, columns]``, ``[rows, 1]``) and cache to states."""

EAGER_USES = 2
"""A shape is captured when it is used for the time after these: capturing costs as much as three eager steps."""

MOST_SHAPES = 64
"""Captured shapes that are kept for one slot buffer."""


def rounded_rows(rows: int) -> int:
    """The next of 1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160 …

    >>> [rounded_rows(n) for n in (1, 3, 9, 33, 65, 250)]
    [1, 4, 16, 48, 96, 256]
    """
    if rows <= 16:
        return 1 << max(0, rows - 1).bit_length()
    step = 16 if rows <= 64 else 32
    return -(-rows // step) * step


def rounded_columns(columns: int) -> int:
    """The next multiple of 64, and above 512 of an eighth of the largest power of two below.

    >>> [rounded_columns(n) for n in (1, 65, 364, 600, 1100, 5000)]
    [64, 128, 384, 640, 1152, 5120]
    """
    step = max(64, (1 << columns.bit_length() - 1) // 8)
    return -(-columns // step) * step


class StaticLayer(DynamicLayer):
    """One layer's window into the slot buffer, with the column to write as a number on the device.

    Overrides what transformers asks of a static cache (5.23): ``update``, ``get_seq_length``, ``get_mask_sizes``.
    """

    is_compileable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = keys, values
        self._column = column
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[rows, heads, 1, head_dim]`` at the column; return the whole window."""
        keys, values = self._window
        keys.index_copy_(2, self._column, key_states)
        values.index_copy_(2, self._column, value_states)
        return keys, values

    def get_seq_length(self) -> torch.Tensor:  # type: ignore[override]
        """The column, as transformers' own static layers give it."""
        return self._column[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the attention mask and their offset."""
        return int(self._window[0].shape[2]), 0


class StaticShape:
    """One size of step over one slot buffer.

    Args:
        buffer: Whose first rows and columns it computes.
        rows, columns: How many of them; those that are not in use cost time and change nothing.
    """

    def __init__(self, buffer: SlotBuffer, rows: int, columns: int) -> None:
        device = buffer.shape.device
        self.rows = rows
        self.uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.states = torch.empty(0)
        self._inputs = torch.zeros(1 + 2 * rows, dtype=torch.long, device=device)
        self._column = self._inputs[:1]
        self._ids = self._inputs[1 : 1 + rows, None]
        self._lengths = self._inputs[1 + rows :, None]
        self._columns = torch.arange(columns, device=device)
        layers = buffer.layers(rows, columns)
        self._cache = Cache(layers=[StaticLayer(keys, values, self._column) for keys, values in layers])

    def set(self, column: int, tokens: Sequence[int], lengths: Sequence[int]) -> None:
        """What the coming run reads: the column to write, and the token and length of each row in use.

        A row that is not in use has length 0 and attends to its own column alone, so that nothing becomes NaN.
        """
        unused = [0] * (self.rows - len(tokens))
        self._inputs.copy_(torch.tensor([column, *tokens, *unused, *lengths, *unused]), non_blocking=True)

    def run(self, body: Body) -> torch.Tensor:
        """The states ``[rows, state]`` after these tokens; nothing in here waits for the device."""
        visible = (self._columns <= self._column) & (self._columns >= self._column - self._lengths)
        return body(self._ids, visible.long(), self._lengths, self._cache)[:, -1]


class StaticStep:
    """Runs decoding steps in static shapes; on CUDA as graphs.

    Args:
        body: The model, called without anything that waits for the device.
        device: Where it is.

    Attributes:
        captured: How many graphs were made.
        failure: Why none is made any more; None while graphs work.
    """

    def __init__(self, body: Body, device: torch.device) -> None:
        self._body = body
        self._device = device
        self._pool: Any = None
        self.captured = 0
        self.failure: str | None = None

    @torch.inference_mode()
    def __call__(self, buffer: SlotBuffer, tokens: Sequence[int]) -> torch.Tensor:
        """One token for each row of the buffer, which has a column free; the states ``[rows, state]``."""
        shape = self._shape(buffer)
        shape.set(buffer.column, tokens, buffer.lengths)
        shape.uses += 1
        if shape.graph is None and shape.uses > EAGER_USES and self._device.type == "cuda" and self.failure is None:
            self._capture(shape)
        if shape.graph is None:
            return shape.run(self._body)[: len(tokens)]
        shape.graph.replay()
        return shape.states[: len(tokens)].clone()  # the next replay writes to the same place

    def _shape(self, buffer: SlotBuffer) -> StaticShape:
        key = (
            min(rounded_rows(buffer.rows), buffer.slots),
            min(rounded_columns(buffer.column + 1), buffer.capacity),
        )
        shapes: dict[tuple[int, int], StaticShape] = buffer.derived.setdefault(self, {})
        if key not in shapes:
            while len(shapes) >= MOST_SHAPES:
                del shapes[next(iter(shapes))]
            shapes[key] = StaticShape(buffer, *key)
        return shapes[key]

    def _capture(self, shape: StaticShape) -> None:
        """Make a graph of a shape; where that cannot be done, say so once and go on without graphs."""
        try:
            here = torch.cuda.current_stream(self._device)
            aside = torch.cuda.Stream(self._device)
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # what is allocated at the first run of a stream is not captured
                shape.run(self._body)
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
                shape.states = shape.run(self._body)
            shape.graph = graph
            self.captured += 1
        except Exception as error:
            shape.graph = None
            if is_out_of_memory(error):
                raise
            self.failure = f"{type(error).__name__}: {error}"
            torch.cuda.synchronize(self._device)
            logger.warning("decoding goes on without CUDA graphs, which is slower: %s", self.failure.splitlines()[0])
