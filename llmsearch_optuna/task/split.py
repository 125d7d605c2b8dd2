"""Which rows are searched on, which are held out, and which belong to which fold: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llmsearch_optuna.errors import InputError, short

FEWEST_ROWS_FOR_HOLDOUT = 20


def same_in_any(texts: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Number the rows so that those with the same prompt have the same number, as they first appear.

    Where there are several ways to ask, rows are the same that any of them asks alike: nothing of a row that is
    searched then stands among those that are held out.

    >>> same_in_any([["a", "b", "b", "c"], ["1", "2", "3", "1"]])
    (0, 1, 1, 0)

    Args:
        texts: Prompts [ways to ask][rows].
    """
    group = list(range(len(texts[0])))  # row -> an earlier row that it is the same as, or itself

    def first_of(row: int) -> int:
        while group[row] != row:
            group[row] = row = group[group[row]]
        return row

    for of_rows in texts:
        known: dict[str, int] = {}
        for row, text in enumerate(of_rows):
            ends = sorted((first_of(known.setdefault(text, row)), first_of(row)))
            group[ends[1]] = ends[0]
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(first_of(row), len(numbers)) for row in range(len(group)))


def split_rows(
    distinct_ids: Sequence[Hashable], holdout: float | str = 0.3, seed: int = 42
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the rows by distinct prompt, so that no prompt is on both sides.

    Args:
        distinct_ids: One id a row; rows with the same prompt have the same id.
        holdout: The share of distinct prompts to lock away, from 0 to below 1. With fewer than 20 rows, or a single
            prompt, nothing is held out.
        seed: Which split, and which order.

    Returns:
        The row numbers of the search in the study's one permutation, and those of the holdout in rising order.
    """
    if not isinstance(holdout, int | float) or not 0 <= holdout < 1:
        raise InputError(f'holdout={short(holdout)} must be a share from 0 to below 1, such as 0.3, "cross" or "auto"')
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={short(seed)} must be an integer from 0")
    locked = _locked_prompts(distinct_ids, holdout, seed)
    search = [row for row, prompt in enumerate(distinct_ids) if prompt not in locked]
    held = tuple(row for row, prompt in enumerate(distinct_ids) if prompt in locked)
    return tuple(search[place] for place in _order(len(search), seed, 1)), held


@dataclass(frozen=True)
class Split:
    """Which rows are searched, and which are held out.

    Attributes:
        search: Row numbers of the search in the study's one permutation.
        holdout: Row numbers that no trial sees. Of a reserve: in the order in which they are decoded, those with the
            same prompt one after another.
        is_reserve: Whether there are so many rows that the search needs only some of them.
    """

    search: tuple[int, ...]
    holdout: tuple[int, ...]
    is_reserve: bool = False


def split_with_reserve(
    distinct_ids: Sequence[Hashable], holdout: float | str, seed: int, *, search_rows: int, holdout_rows: int
) -> Split:
    """Split the rows as `split_rows` does, but search no more prompts than asked for: the others are the reserve.

    Args:
        distinct_ids: As for `split_rows`.
        holdout: The share that is held out where this leaves few enough to search.
        seed: Which split, and which orders.
        search_rows: The most distinct prompts to search.
        holdout_rows: The most distinct prompts of a reserve; what is beyond both is not used.
    """
    order, held = split_rows(distinct_ids, holdout, seed)
    rows_of: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(distinct_ids):
        rows_of.setdefault(prompt, []).append(row)
    if not held or len(rows_of) - len({distinct_ids[row] for row in held}) <= search_rows:
        return Split(order, held)
    prompts = list(rows_of)
    permuted = [prompts[place] for place in _order(len(prompts), seed, 0)]
    searched = sorted(row for prompt in permuted[-search_rows:] for row in rows_of[prompt])
    return Split(
        tuple(searched[place] for place in _order(len(searched), seed, 1)),
        tuple(row for prompt in permuted[:-search_rows][:holdout_rows] for row in rows_of[prompt]),
        is_reserve=True,
    )


def assign_folds(distinct_ids: Sequence[Hashable], folds: int, seed: int = 42) -> tuple[int, ...]:
    """Return the fold of each row, from 0; rows with the same prompt are in the same fold.

    Args:
        distinct_ids: One id a row; rows with the same prompt have the same id.
        folds: How many; the numbers of prompts in them differ by at most one.
        seed: Which assignment.
    """
    prompts = list(dict.fromkeys(distinct_ids))
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= len(prompts):
        raise InputError(
            f"folds={short(folds)} must be a whole number from 2 to {len(prompts)}, the number of different prompts"
        )
    fold_of = {prompts[place]: turn % folds for turn, place in enumerate(_order(len(prompts), seed, 2))}
    return tuple(fold_of[prompt] for prompt in distinct_ids)


def _locked_prompts(distinct_ids: Sequence[Hashable], holdout: float, seed: int) -> set[Hashable]:
    prompts = list(dict.fromkeys(distinct_ids))
    if len(distinct_ids) < FEWEST_ROWS_FOR_HOLDOUT or len(prompts) < 2 or holdout == 0:
        return set()
    count = min(max(round(holdout * len(prompts)), 1), len(prompts) - 1)
    return {prompts[place] for place in _order(len(prompts), seed, 0)[:count]}


def _order(count: int, seed: int, purpose: int) -> list[int]:
    """Return a permutation; drawn as sorted uniforms, whose stream NumPy keeps stable over its versions."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose])))
    return [int(place) for place in np.argsort(rng.random(count), kind="stable")]
