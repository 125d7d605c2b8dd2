"""The order in which things are given up, on stores that only count."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from llmsearch_optuna.engine.batch_size import BatchSizes
from llmsearch_optuna.engine.out_of_memory import NoRoomError, Relief
from llmsearch_optuna.engine.stats import EngineStats


class Kept:
    """Stands for the store, the encodings and the lanes: holds bytes until they are given up, and says when."""

    def __init__(self, given_up: list[str], name: str, nbytes: int, scores: int = 0) -> None:
        self.given_up, self.name, self.nbytes, self.scores = given_up, name, nbytes, scores

    def release(self) -> int:
        freed, self.nbytes = self.nbytes, 0
        self.given_up += [self.name] if freed else []
        return freed

    def release_scores(self) -> int:
        freed, self.scores = self.scores, 0
        self.given_up += ["scores"] if freed else []
        return freed

    def abandon(self) -> None:
        self.given_up.append(self.name)


class Place:
    """A relief over such stores, with four rows at most."""

    def __init__(self, *, lanes: bool = True) -> None:
        self.given_up: list[str] = []
        self.sizes, self.stats = BatchSizes(4), EngineStats()
        store: Any = Kept(self.given_up, "keys and values", 10, scores=5)
        encodings: Any = Kept(self.given_up, "encodings", 10)
        buffer: Any = Kept(self.given_up, "buffer", 0) if lanes else None
        self.relief = Relief(self.sizes, store, encodings, buffer, self.stats, torch.device("cpu"))

    def short(self) -> None:
        """Memory runs out in a pass over as many rows as are allowed."""
        limit = self.sizes.of(10)
        self.relief.make_room(MemoryError("no more"), limit.rows, limit)


def test_what_costs_least_goes_first_and_every_shortage_counts() -> None:
    place = Place()
    place.short()
    assert (place.given_up, place.sizes.of(10).rows) == (["keys and values", "encodings"], 4)
    place.short()
    place.short()
    assert (place.given_up[2:], place.sizes.of(10).rows) == ([], 1)
    place.short()
    assert place.given_up[2:] == ["buffer"]
    with pytest.raises(NoRoomError, match="MemoryError: no more"):
        place.short()
    assert place.relief.make_room_of_scores("MemoryError")
    assert not place.relief.make_room_of_scores("MemoryError"), "there are none left"
    assert place.given_up[3:] == ["scores"]
    assert place.stats.out_of_memory == 5


def test_the_buffer_can_be_given_up_again_after_a_pass_that_fitted() -> None:
    place = Place()
    for _ in range(4):
        place.short()
    place.relief.passed(place.sizes.of(10))
    place.short()
    assert place.given_up[2:] == ["buffer", "buffer"]


def test_without_lanes_one_row_that_does_not_fit_is_the_end() -> None:
    place = Place(lanes=False)
    for _ in range(3):
        place.short()
    with pytest.raises(NoRoomError):
        place.short()


def test_work_is_repeated_for_as_long_as_something_can_be_given_up() -> None:
    place, left, tries = Place(), [3, 2], []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert place.relief.relieved(work, lambda: left.pop()) == "done"
    assert (len(tries), left, place.stats.out_of_memory) == (3, [], 2)
    tries.clear()
    with pytest.raises(NoRoomError, match="CUDA out of memory"):
        place.relief.relieved(work, lambda: 0)


def test_an_error_about_something_else_is_nobodys_to_relieve() -> None:
    place = Place()
    limit = place.sizes.of(10)
    with pytest.raises(RuntimeError, match="shapes"):
        place.relief.make_room(RuntimeError("shapes do not match"), 4, limit)
    with pytest.raises(ValueError, match="shapes"):
        place.relief.relieved(lambda: int("shapes"), lambda: 1)
    assert (place.given_up, place.stats.out_of_memory) == ([], 0)


def test_what_the_error_holds_is_let_go_before_anything_is_given_up() -> None:
    place, alive, seen = Place(), [], []

    def work() -> int:
        big = torch.zeros(8)
        alive.append(weakref.ref(big))
        if len(alive) == 1:
            raise MemoryError
        return 7

    assert place.relief.relieved(work, lambda: seen.append(alive[0]()) or 1) == 7
    assert seen == [None]
