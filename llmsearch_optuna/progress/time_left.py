"""How long the remaining trials of a running study take, by the pace of the latest ones.

What a study takes as a whole, seen before it has trials that ended, is a forecast (see `optimize.forecast`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LATEST = 12
"""Trials that tell how fast it goes: the first ones run in full, later ones are pruned and reuse what is known."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A trial's time at work in seconds of one clock, and the rows that were decoded in it."""

    begun: float
    ended: float
    rows: int = 0


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """Seconds in which anything was at work: trials that run together count once, and a pause not at all."""
    covered, until = 0.0, float("-inf")
    for interval in sorted(intervals, key=lambda i: i.begun):
        covered += max(0.0, interval.ended - max(interval.begun, until))
        until = max(until, interval.ended)
    return covered


def seconds_per_trial(ended: Sequence[Interval], *, window: int = LATEST) -> float | None:
    """Seconds at work for each of the latest trials; None before the first one ended.

    Args:
        ended: Trials in the order in which they ended.
        window: How many of them count. The time before the first of these ended belongs to the one before it.
    """
    latest = ended[-window:]
    since = ended[-window - 1].ended if len(ended) > window else float("-inf")
    seconds = covered_seconds(Interval(max(since, i.begun), max(since, i.ended)) for i in latest)
    return seconds / len(latest) if seconds > 0 else None


def trials_left(n_trials: int, ended: int, shares_done: Iterable[float]) -> float:
    """Trials that are left, where each running one counts by the share of its rows that is still to do."""
    return max(0.0, n_trials - ended - sum(shares_done))


class TimeLeft:
    """The time left of a study, from the moments at which its trials end.

    Args:
        clock: Seconds that only grow.
        window: How many of the latest trials count.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, window: int = LATEST) -> None:
        self._clock = clock
        self._window = window
        self._last_end = clock()
        self._ended: list[Interval] = []

    def trial_ended(self) -> None:
        """Note that a trial ended now."""
        now = self._clock()
        self._ended = [*self._ended[-self._window :], Interval(self._last_end, now)]
        self._last_end = now

    def seconds(self, remaining: float) -> float | None:
        """Seconds that `remaining` trials will take (parts of trials count); None before the first one ended."""
        if not self._ended:
            return None
        per_trial = seconds_per_trial(self._ended, window=self._window) or 0.0
        return max(0.0, per_trial * remaining - (self._clock() - self._last_end))
