"""How long a device works, measured without waiting for it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import torch

UNREAD = 64
"""So many measurements may wait to be read before the finished ones among them are added up."""


class DeviceTimer:
    """Adds up how long work takes on one device.

    On CUDA a pair of events marks the work in the stream, and is read after the stream has passed it; elsewhere the
    clock of the host serves.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._unread: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what is done within."""
        if not self._on_cuda:
            started = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - started
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._unread.append((before, after))
        if len(self._unread) > UNREAD:
            self._read()

    def add(self, seconds: float) -> None:
        """Count what was measured in another way."""
        self._seconds += seconds

    def reset(self) -> None:
        """Begin at 0."""
        self._seconds = 0.0
        self._unread.clear()

    @property
    def seconds(self) -> float:
        """Seconds of work so far; waits for what is still being done."""
        if self._unread:
            self._unread[-1][1].synchronize()
            self._read()
        return self._seconds

    def _read(self) -> None:
        while self._unread and self._unread[0][1].query():
            before, after = self._unread.popleft()
            self._seconds += before.elapsed_time(after) / 1e3
