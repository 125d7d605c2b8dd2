"""How many of torch's threads a step on a CPU uses: measured on the engine's own steps, not assumed.

On a quiet machine all threads are fastest. Beside other processes a thread that is not scheduled holds up the others
at every barrier, and fewer are faster, down to one. Nothing here knows a model; the setting that torch has is put
back after every step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

ROUNDS = 3
"""Steps that each number of threads is timed over."""

CLEARLY_SLOWER = 2.0
"""A number of threads is given up when its best step takes so many times as long as the best of another."""

ADVANTAGE = 0.9
"""Fewer threads are used only where a step takes at most this share of the time with torch's own setting."""

PATIENCE = 64
"""Steps before the numbers are compared again; doubles each time that the choice stays, up to 16 times as many."""

SLOWDOWN = 2.0
"""The numbers are compared at once when a few steps in a row take so many times as long as when they were chosen (a
step of more rows may take longer in proportion)."""

_SLOW_STEPS = 4


class ThreadTuner:
    """Chooses the number of threads for decode steps.

    The setting that torch has is the most that is used, and what is begun with.

    Args:
        clock: Tells the time in seconds.
        get_threads: Reads torch's setting.
        set_threads: Changes it.

    Attributes:
        threads: The number that is used at present, outside of comparisons.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        get_threads: Callable[[], int] = torch.get_num_threads,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._clock = clock
        self._get_threads = get_threads
        self._set_threads = set_threads
        self._warm = False
        self._begin(get_threads())

    def _begin(self, most: int) -> None:
        self._most = self.threads = most
        self._patience = PATIENCE
        self._expected, self._expected_rows = 0.0, 1
        self._compare()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Run with the chosen number of threads; torch's own setting comes back at the end."""
        self._heed_setting()
        with self._set(self.threads):
            yield

    @contextlib.contextmanager
    def timed(self, rows: int) -> Iterator[None]:
        """Run a decode step of so many rows, and learn from how long it takes. A step that fails teaches nothing."""
        self._heed_setting()
        if self._most == 1:
            yield
            return
        threads = self._next()
        started = self._clock()
        with self._set(threads):
            yield
        self._learn(threads, self._clock() - started, rows)

    @contextlib.contextmanager
    def _set(self, threads: int) -> Iterator[None]:
        if threads == self._most:
            yield
            return
        self._set_threads(threads)
        try:
            yield
        finally:
            self._set_threads(self._most)

    def _heed_setting(self) -> None:
        """Begin again where the user has changed torch's setting since."""
        setting = self._get_threads()
        if setting != self._most:
            self._begin(setting)

    def _compare(self) -> None:
        self._seconds: dict[int, list[float]] = {threads: [] for threads in _halves(self._most)}
        self._slow = 0

    def _next(self) -> int:
        """The number for the coming step: while numbers are compared, the one with the fewest timings."""
        if not self._seconds:
            return self.threads
        return min(self._seconds, key=lambda threads: len(self._seconds[threads]))

    def _learn(self, threads: int, seconds: float, rows: int) -> None:
        if not self._warm:  # the first step of all also loads code and fills caches
            self._warm = True
        elif self._seconds:
            self._seconds[threads].append(seconds)
            self._give_up_slow()
            if all(len(timings) >= ROUNDS for timings in self._seconds.values()):
                self._choose(rows)
        else:
            self._watch(seconds, rows)

    def _give_up_slow(self) -> None:
        best = {threads: min(timings) for threads, timings in self._seconds.items() if timings}
        limit = CLEARLY_SLOWER * min(best.values())
        for threads, seconds in best.items():
            if seconds > limit and len(self._seconds) > 1:
                del self._seconds[threads]

    def _choose(self, rows: int) -> None:
        typical = {threads: median(timings) for threads, timings in self._seconds.items()}
        fastest = min(typical, key=lambda threads: typical[threads])
        own = typical.get(self._most)
        chosen = fastest if own is None or typical[fastest] < ADVANTAGE * own else self._most
        self._patience = min(2 * self._patience, 16 * PATIENCE) if chosen == self.threads else PATIENCE
        self.threads, self._left = chosen, self._patience
        self._expected, self._expected_rows = typical[chosen], rows
        self._seconds = {}

    def _watch(self, seconds: float, rows: int) -> None:
        self._left -= 1
        expected = self._expected * max(1.0, rows / self._expected_rows)
        self._slow = self._slow + 1 if seconds > SLOWDOWN * expected else 0
        if self._slow >= _SLOW_STEPS or self._left <= 0:
            self._compare()


def _halves(most: int) -> Iterator[int]:
    """``most``, half of it, and so on down to 1.

    >>> list(_halves(6))
    [6, 3, 1]
    """
    while most >= 1:
        yield most
        most //= 2
