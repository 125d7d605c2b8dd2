"""Two halves of the rows that are searched apart judge each other's winner: at which level, and whom to recommend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmsearch_optuna.types import Direction

UNSEEN_LEVEL = 0.0125
"""Of Stringer's bound on all rows together, one-sided; that of a holdout is taken at 0.05. The halves are not quite
independent: where both choose the same setting, it had luck on both. With 0.05 up to 7 of 100 searches said "better"
where all settings derail on few rows and are worth nothing; see docs/verdict.md."""

FEWEST_PROMPTS = 12
"""Six in each half: with fewer than that no test of a half could reject."""

MOST_PROMPTS = 140
"""Up to so many it was simulated, and found more than a holdout at every size; with more there is a reserve, which a
search does not pay for. See docs/verdict.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfOutcome:
    """What the winner of one half did.

    Attributes:
        trial: Its number.
        rows: Of the other half, which it was judged on.
        difference: Winner minus baseline on these rows.
        overall: The same on all rows, those that it was chosen on too: this flatters.
        is_chosen: Whether it is the one of the two that may be recommended.
    """

    trial: int
    rows: int
    difference: float
    overall: float
    is_chosen: bool = False


def with_chosen(halves: Sequence[HalfOutcome], direction: Direction) -> tuple[HalfOutcome, ...]:
    """Mark the one that may be recommended.

    It is the better one on all rows, out of those that beat the baseline on the rows which they had not seen; where
    neither does, simply the better one. Ties go to the first half.

    Args:
        halves: The outcome of each half.
        direction: Of the metric.
    """
    sign = -1.0 if direction == "minimize" else 1.0
    ahead = [place for place, half in enumerate(halves) if sign * half.difference > 0]
    chosen = max(ahead or range(len(halves)), key=lambda place: (sign * halves[place].overall, -place))
    return tuple(replace(half, is_chosen=place == chosen) for place, half in enumerate(halves))
