"""How many requests are in flight at once: as many as make the server faster, and fewer when it is overwhelmed.

Only counts and times come in. The limit changes how long a study takes, never what is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

GROWTH = 1.5
WORTH_GROWING = 1.08
"""A larger limit is kept where it makes the server this much faster."""

EPOCHS_AT_REST = 20
"""Measurements between two attempts to grow, once growing has stopped to help."""

FEWEST_A_MEASUREMENT = 8


class ConcurrencyLimit:
    """The most requests in flight.

    A measurement is a number of completions that end while requests are waiting. After each the limit grows; where the
    server has become no faster it goes back, and stays for a while. Failures halve it, and successes bring it back.

    Args:
        start: The first limit: the server's own slots, where it says them.
        most: The limit never exceeds it.
        is_fixed: Whether ``start`` is what the user asked for; then it only gives way to failures.
        clock: Seconds that only grow.
    """

    def __init__(
        self, start: int, *, most: int = 256, is_fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._goal = start
        self._limit = start
        self._most = start if is_fixed else max(start, most)
        self._is_fixed = is_fixed
        self._clock = clock
        self._begun: float | None = None
        self._completions = 0
        self._work = 0.0
        self._smaller: tuple[int, float] | None = None
        self._at_rest = 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return self._limit

    def succeeded(self, work: float, *, is_saturated: bool) -> None:
        """Count a request that was answered.

        Args:
            work: How much it was, in any unit that adds up: tokens.
            is_saturated: Whether as many requests as allowed were in flight.
        """
        if self._limit < self._goal:
            self._limit += 1
            self._forget_measurement()
            return
        if self._is_fixed:
            return
        if not is_saturated or self._begun is None:
            self._forget_measurement()
            self._begun = self._clock() if is_saturated else None
            return
        self._completions += 1
        self._work += work
        if self._completions >= max(FEWEST_A_MEASUREMENT, 2 * self._limit):
            self._judge(self._work / max(self._clock() - self._begun, 1e-9))

    def failed(self, *, is_overload: bool) -> None:
        """Halve the limit; where the server was overwhelmed, aim lower from now on, too."""
        if is_overload and not self._is_fixed:
            self._goal = max(1, math.floor(self._limit * 0.75))
            self._smaller, self._at_rest = None, EPOCHS_AT_REST
        self._limit = max(1, self._limit // 2)
        self._forget_measurement()

    def _judge(self, rate: float) -> None:
        self._forget_measurement()
        if self._at_rest > 0:
            self._at_rest -= 1
        elif self._smaller is not None and rate < WORTH_GROWING * self._smaller[1]:
            self._goal, self._smaller, self._at_rest = self._smaller[0], None, EPOCHS_AT_REST
            self._limit = self._goal
        elif self._goal < self._most:
            self._smaller = (self._goal, rate)
            self._goal = min(self._most, math.ceil(self._goal * GROWTH))
            self._limit = self._goal

    def _forget_measurement(self) -> None:
        self._begun, self._completions, self._work = None, 0, 0.0
