"""When a request that failed is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0


@dataclass
class Backoff:
    """Waits twice as long after every failure, with jitter, until the time is up.

    Attributes:
        retry_for: Seconds from the first failure on after which nothing is tried again.
        clock: Seconds that only grow.
        jitter: Returns a factor from 0 to 1.
    """

    retry_for: float
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    failures: int = 0
    _first_failure: float | None = field(default=None, repr=False)

    def next_delay(self, retry_after: float | None = None) -> float | None:
        """Count a failure, and return the seconds to wait before the next attempt; None when the time is up.

        Args:
            retry_after: What the server asked for; never less is waited.
        """
        now = self.clock()
        if self._first_failure is None:
            self._first_failure = now
        left = self._first_failure + self.retry_for - now
        if left <= 0:
            return None
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0**self.failures)
        self.failures += 1
        delay = longest * (0.5 + self.jitter() / 2)
        if retry_after is not None:
            delay = max(delay, retry_after)
        # The last attempt comes when the time is up, not before it.
        return min(delay, left)
