"""The split keeps prompts on one side, and the same seed gives the same split for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.split import assign_folds, split_rows


@given(
    st.lists(st.integers(0, 60), max_size=120),
    st.floats(0, 0.95),
    st.integers(0, 2**31),
)
def test_every_row_is_on_one_side_and_no_prompt_on_both(ids: list[int], holdout: float, seed: int) -> None:
    search, held = split_rows(ids, holdout, seed)
    assert sorted(search + held) == list(range(len(ids)))
    assert list(held) == sorted(held)
    assert {ids[row] for row in search}.isdisjoint(ids[row] for row in held)
    assert split_rows(ids, holdout, seed) == (search, held)
    if ids:
        assert search


def test_the_share_is_of_distinct_prompts() -> None:
    assert len(split_rows(range(100), 0.3)[1]) == 30
    twice = [row // 2 for row in range(100)]
    held = split_rows(twice, 0.3)[1]
    assert len({twice[row] for row in held}) == 15


def test_fewer_than_twenty_rows_are_all_searched_on() -> None:
    assert split_rows(range(19), 0.5)[1] == ()
    assert len(split_rows(range(20), 0.5)[1]) == 10


def test_one_prompt_alone_cannot_be_split() -> None:
    assert split_rows([7] * 30, 0.3)[1] == ()


def test_the_search_rows_are_permuted_and_seeds_differ() -> None:
    search, held = split_rows(range(60), 0.3, seed=1)
    assert list(search) != sorted(search)
    assert split_rows(range(60), 0.3, seed=2) != (search, held)


def test_a_split_never_changes_between_versions() -> None:
    assert split_rows(range(20), 0.2, seed=42) == (
        (12, 1, 16, 19, 2, 10, 18, 13, 6, 3, 11, 7, 0, 5, 14, 9),
        (4, 8, 15, 17),
    )


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 30])
def test_a_share_outside_its_range_is_refused(holdout: float) -> None:
    with pytest.raises(InputError, match="holdout="):
        split_rows(range(30), holdout)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_must_be_a_natural_number(seed: int) -> None:
    with pytest.raises(InputError, match="seed="):
        split_rows(range(30), 0.3, seed)


@given(ids=st.lists(st.integers(0, 30), min_size=2, max_size=60), folds=st.integers(2, 7), seed=st.integers(0, 99))
def test_folds_are_of_distinct_prompts_and_of_equal_size(ids: list[int], folds: int, seed: int) -> None:
    prompts = set(ids)
    assume(len(prompts) >= folds)
    found = assign_folds(ids, folds, seed)
    assert found == assign_folds(ids, folds, seed)
    fold_of = dict(zip(ids, found, strict=True))
    assert found == tuple(fold_of[prompt] for prompt in ids)
    sizes = [sum(fold == number for fold in fold_of.values()) for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == len(prompts)


def test_folds_differ_by_seed_and_never_change_between_versions() -> None:
    assert assign_folds(range(8), 3, seed=42) == (2, 1, 0, 0, 1, 0, 1, 2)
    assert assign_folds(range(8), 3, seed=1) != assign_folds(range(8), 3, seed=42)


@pytest.mark.parametrize("folds", [0, 1, 6, True, 2.0])
def test_as_many_folds_as_prompts_at_most(folds: Any) -> None:
    with pytest.raises(InputError, match="folds=.* must be a whole number from 2 to 5"):
        assign_folds([0, 1, 2, 3, 4, 4], folds)
