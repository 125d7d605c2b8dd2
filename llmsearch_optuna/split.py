"""Which rows are searched on, which are locked away, and in what order they are seen.

Decided by hashes of the seed, so that it is the same on every machine and for every version of every library. Rows
with the same prompt stay together: what was seen in the search is not in the holdout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llmsearch_optuna.errors import InputError

LEAST_FOR_HOLDOUT = 20
"""With fewer different prompts nothing is locked away: neither part could say anything."""


@dataclass(frozen=True)
class Split:
    """Row numbers: the search's in the order in which every trial sees them, and the holdout's."""

    search: tuple[int, ...]
    holdout: tuple[int, ...]


def split_rows(prompts: Sequence[str], *, holdout: float, seed: int) -> Split:
    """Split rows by distinct prompt, and permute them.

    Args:
        prompts: One a row.
        holdout: The share of rows to lock away, from 0 to below 1.
        seed: The study's seed.

    Raises:
        InputError: A share out of range.
    """
    if not 0.0 <= holdout < 1.0:
        raise InputError(f"holdout={holdout!r} must be a share of the rows from 0 to below 1, such as 0.3")
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    locked: list[int] = []
    if len(rows_of) >= LEAST_FOR_HOLDOUT:
        wanted = round(holdout * len(prompts))
        for prompt in sorted(rows_of, key=lambda p: _hash(seed, "holdout", p)):
            if len(locked) + len(rows_of[prompt]) > wanted:
                break
            locked += rows_of[prompt]
    left = set(range(len(prompts))) - set(locked)
    return Split(
        search=tuple(sorted(left, key=lambda row: _hash(seed, "order", str(row)))),
        holdout=tuple(sorted(locked, key=lambda row: _hash(seed, "order", str(row)))),
    )


def _hash(seed: int, purpose: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {text}".encode("utf-8", "surrogatepass")).digest()
