"""How many rows go into one pass: what has fitted, by how long the rows are and what kind of pass it is.

Sizes only decide how fast rows come, never which tokens: those do not depend on the batch. What was learned can be
taken out and given to the next engine on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmsearch_optuna.engine.memory import MIDDLE_LENGTH

PROMPTS = 0
"""In the place of the number of beams: a pass over whole prompts, which takes far more memory a row."""

SHORTEST_BUCKET = 64


def length_bucket(tokens: int) -> int:
    """Rows of up to so many tokens are alike: the next power of two, 64 at least."""
    return max(SHORTEST_BUCKET, 1 << max(0, tokens - 1).bit_length())


class BatchLimit:
    """How many rows go into one pass: as many as fit, fewer after running out of memory, more again later.

    Args:
        maximum: The most that is ever tried.
        rows: How many to begin with; default: the maximum.
        growth_after: Passes without trouble after which twice as many are tried again.
    """

    def __init__(self, maximum: int, rows: int | None = None, *, growth_after: int = 64) -> None:
        self.maximum = maximum
        self.rows = maximum if rows is None else max(1, min(rows, maximum))
        self._growth_after = growth_after
        self._calm = 0
        self._has_grown = False

    def succeeded(self) -> None:
        """Count a pass without trouble."""
        self._calm += 1
        if self.rows < self.maximum and self._calm >= self._growth_after:
            self.rows = min(self.maximum, self.rows * 2)
            self._calm = 0
            self._has_grown = True

    def ran_out(self, tried: int) -> bool:
        """Halve after ``tried`` rows did not fit; False when not even one row did."""
        self._calm = 0
        if tried <= 1:
            return False
        if self._has_grown:  # every try costs the caches that are given up for it, so the next one comes later
            self._growth_after *= 2
            self._has_grown = False
        self.rows = max(1, min(self.rows, tried) // 2)
        return True


class BatchSizes:
    """A limit for every kind of pass: by length bucket, and by beams (or PROMPTS).

    Args:
        maximum: The most rows that are ever tried.
        fitting: Estimates how many rows of so many tokens fit; without it the maximum does.
    """

    def __init__(self, maximum: int, fitting: Callable[[int], int] | None = None) -> None:
        self.maximum = maximum
        self._fitting = fitting
        self.rows = self._most(MIDDLE_LENGTH)
        """Of the decoding pass that was asked for last; before the first one of rows of middle length."""
        self._limits: dict[tuple[int, int], BatchLimit] = {}
        self._learned: set[tuple[int, int]] = set()

    def of(self, tokens: int, beams: int = 1) -> BatchLimit:
        """The limit of passes whose longest row has so many tokens."""
        key = (length_bucket(tokens), beams)
        limit = self._limits.get(key)
        if limit is None:
            # Longer rows take no less memory than shorter ones, of which something may be known.
            shorter = (known.rows for (bucket, b), known in self._limits.items() if b == beams and bucket < key[0])
            limit = self._limits[key] = BatchLimit(self._most(key[0]), min(shorter, default=None))
        if beams != PROMPTS:
            self.rows = limit.rows
        return limit

    def ran_out(self, limit: BatchLimit, tried: int) -> bool:
        """Learn that ``tried`` rows did not fit; False when not even one row did."""
        self._learned |= {key for key, known in self._limits.items() if known is limit}
        return limit.ran_out(tried)

    def is_of_prompts(self, limit: BatchLimit) -> bool:
        """Whether this is a limit of passes over whole prompts."""
        return any(known is limit and beams == PROMPTS for (_, beams), known in self._limits.items())

    @property
    def learned(self) -> dict[tuple[int, int], int]:
        """(length bucket, beams) -> rows, where memory has ever been too short for the maximum."""
        return {key: self._limits[key].rows for key in sorted(self._learned)}

    def start_from(self, learned: Mapping[tuple[int, int], int]) -> None:
        """Begin with what another engine learned on the same device; it grows from there like any other size."""
        for key, rows in learned.items():
            self._limits[key] = BatchLimit(self._most(key[0]), rows)
            self._learned.add(key)

    def _most(self, tokens: int) -> int:
        """The most rows of so many tokens that are ever tried."""
        return self.maximum if self._fitting is None else max(1, min(self.maximum, self._fitting(tokens)))
