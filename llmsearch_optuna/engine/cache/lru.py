"""A set of things with a limit in bytes: what the engine keeps for later is kept in such sets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Evictable(Protocol):
    """What a budget can hold and drop."""

    @property
    def nbytes(self) -> int: ...

    def drop(self) -> None: ...


def _drop(entry: Evictable) -> None:
    entry.drop()


Entry = TypeVar("Entry", bound=Evictable)


class LeastRecentlyUsed(Generic[Entry]):
    """A set of evictable things with a limit in bytes; what was used longest ago goes first.

    Args:
        limit: The most bytes that it keeps.
        evict: What becomes of a thing that has to go.
    """

    def __init__(self, limit: int, evict: Callable[[Entry], None] = _drop) -> None:
        self.limit = limit
        self.nbytes = 0
        self.evictions = 0
        self._evict = evict
        self._entries: OrderedDict[int, tuple[Entry, int]] = OrderedDict()

    def __contains__(self, entry: Entry) -> bool:
        return id(entry) in self._entries

    def add(self, entry: Entry) -> bool:
        """Keep an entry, evicting others for it; False (and evicted) when it alone is over the limit."""
        if entry in self:
            self.touch(entry)
            return True
        size = entry.nbytes
        if size > self.limit:
            self.evictions += 1
            self._evict(entry)
            return False
        self._entries[id(entry)] = (entry, size)
        self.nbytes += size
        self.shrink(self.limit)
        return True

    def touch(self, entry: Entry) -> None:
        """Note that an entry was used now."""
        if entry in self:
            self._entries.move_to_end(id(entry))

    def shrink(self, limit: int) -> int:
        """Evict until at most ``limit`` bytes are kept; returns the bytes that were given back."""
        before = self.nbytes
        while self.nbytes > limit and self._entries:
            _, (entry, size) = self._entries.popitem(last=False)
            self.nbytes -= size
            self.evictions += 1
            self._evict(entry)
        return before - self.nbytes

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entry, _ in self._entries.values())
