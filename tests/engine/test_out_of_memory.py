"""The order in which things are given up, on stores that only count."""

from __future__ import annotations

import weakref
from typing import Any, cast

import pytest
import torch

from llmsearch_optuna.engine.batch_size import PROMPTS, BatchSizes
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.out_of_memory import CALM_PASSES, MemoryReclaimer, NoRoomError
from llmsearch_optuna.engine.stats import EngineStats
from tests.engine.memory_limit import MemoryLimit
from tests.tiny import make_llama, make_tokenizer


class Kept:
    """Stands for both caches and the batch: holds bytes until they are evicted, and says when."""

    def __init__(self, given_up: list[str], name: str, nbytes: int, **more: int) -> None:
        self.given_up, self.name, self.nbytes = given_up, name, nbytes
        self.scores, self.prompts, self.slots = (more.get(part, 0) for part in ("scores", "prompts", "slots"))
        self.stores_running_prompts = True

    def evict_blocks(self) -> int:
        freed, self.nbytes = self.nbytes, 0
        self.given_up += [self.name] if freed else []
        return freed

    evict = evict_blocks

    def evict_scores(self) -> int:
        freed, self.scores = self.scores, 0
        self.given_up += ["scores"] if freed else []
        return freed

    def evict_running_prompts(self) -> int:
        freed, self.prompts = self.prompts, 0
        self.given_up += ["prompts"] if freed else []
        self.stores_running_prompts = False
        return freed

    def discard(self) -> None:
        self.given_up.append(self.name)
        self.slots = 0


class Place:
    """A reclaimer over such caches, with four rows at most."""

    def __init__(self, *, has_batch: bool = True, slots: int = 0, prompts: int = 0) -> None:
        self.given_up: list[str] = []
        self.sizes, self.stats = BatchSizes(4), EngineStats()
        self.store = store = Kept(self.given_up, "keys and values", 10, scores=5, prompts=prompts)
        encoder_cache: Any = Kept(self.given_up, "encoder_cache", 10)
        buffer: Any = Kept(self.given_up, "buffer", 0, slots=slots) if has_batch else None
        self.reclaimer = MemoryReclaimer(
            self.sizes, cast(Any, store), encoder_cache, buffer, self.stats, torch.device("cpu")
        )

    def short(self) -> None:
        """Memory runs out in a pass over as many rows as are allowed."""
        limit = self.sizes.of(10)
        self.reclaimer.make_room(MemoryError("no more"), limit.rows, limit)


def test_what_costs_least_goes_first_and_every_shortage_counts() -> None:
    place = Place()
    place.short()
    assert (place.given_up, place.sizes.of(10).rows) == (["keys and values", "encoder_cache"], 4)
    place.short()
    place.short()
    assert (place.given_up[2:], place.sizes.of(10).rows) == ([], 1)
    place.short()
    assert place.given_up[2:] == ["buffer"]
    with pytest.raises(NoRoomError, match="MemoryError: no more"):
        place.short()
    assert place.reclaimer.make_room_of_scores("MemoryError")
    assert not place.reclaimer.make_room_of_scores("MemoryError"), "there are none left"
    assert place.given_up[3:] == ["scores"]
    assert place.stats.out_of_memory == 5


def test_the_buffer_can_be_given_up_again_after_a_pass_that_fitted() -> None:
    place = Place()
    for _ in range(4):
        place.short()
    place.reclaimer.passed(place.sizes.of(10))
    place.short()
    assert place.given_up[2:] == ["buffer", "buffer"]


def test_without_a_batch_one_row_that_does_not_fit_is_the_end() -> None:
    place = Place(has_batch=False)
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

    assert place.reclaimer.retry(work, lambda: left.pop()) == "done"
    assert (len(tries), left, place.stats.out_of_memory) == (3, [], 2)
    tries.clear()
    with pytest.raises(NoRoomError, match="CUDA out of memory"):
        place.reclaimer.retry(work, lambda: 0)


def test_an_error_about_something_else_is_nobodys_to_relieve() -> None:
    place = Place()
    limit = place.sizes.of(10)
    with pytest.raises(RuntimeError, match="shapes"):
        place.reclaimer.make_room(RuntimeError("shapes do not match"), 4, limit)
    with pytest.raises(ValueError, match="shapes"):
        place.reclaimer.retry(lambda: int("shapes"), lambda: 1)
    assert (place.given_up, place.stats.out_of_memory) == ([], 0)


def test_what_the_error_holds_is_let_go_before_anything_is_given_up() -> None:
    place, alive, seen = Place(), [], []

    def work() -> int:
        big = torch.zeros(8)
        alive.append(weakref.ref(big))
        if len(alive) == 1:
            raise MemoryError
        return 7

    assert place.reclaimer.retry(work, lambda: seen.append(alive[0]()) or 1) == 7
    assert seen == [None]


def test_a_batch_that_was_made_for_more_rows_goes_before_the_next_halving() -> None:
    place = Place(slots=4)
    place.short()
    place.short()
    assert place.sizes.of(10).rows == 2
    place.short()
    assert (place.given_up[2:], place.sizes.of(10).rows) == (["buffer"], 2)


def test_prompts_that_do_not_fit_halve_their_own_batch_and_leave_the_rows_in_flight_alone() -> None:
    place = Place(slots=4)
    limit = place.sizes.of(10, PROMPTS)
    for _ in range(3):
        place.reclaimer.make_room(MemoryError("no more"), limit.rows, limit)
    assert (place.given_up, limit.rows) == (["keys and values", "encoder_cache"], 1)


def test_prompts_of_rows_in_flight_go_second_and_are_kept_again_after_a_calm_while() -> None:
    place = Place(prompts=7)
    place.short()
    place.short()
    assert (place.given_up[2:], place.store.stores_running_prompts) == (["prompts"], False)
    for _ in range(CALM_PASSES):
        assert not place.store.stores_running_prompts
        place.reclaimer.passed(place.sizes.of(10))
    assert place.store.stores_running_prompts


def test_whatever_memory_there_is_the_tokens_are_the_same() -> None:
    """The prompts of all rows that wait take more than there is, and so do their rows; only few fit at once."""
    model, tokenizer = make_llama(), make_tokenizer()
    prompts = [f"{row} times the quick brown fox " * 3 for row in range(12)]
    params = {"max_new_tokens": 6, "repetition_penalty": 1.2}
    expected = Engine(model, tokenizer, batch_size=12, cache_budget=0).generate(prompts, params)
    free = MemoryLimit(10**9)
    with free:
        Engine(model, tokenizer, batch_size=12, cache_budget=0).generate(prompts, params)
    for budget, share in ((0, 0.6), (0, 0.3), (10**8, 0.4)):
        engine = Engine(model, tokenizer, batch_size=12, cache_budget=budget)
        limit = MemoryLimit(int(free.peak * share))
        with limit:
            assert engine.generate(prompts, params) == expected, (budget, share)
        assert engine.stats.out_of_memory == limit.refused > 0
        assert limit.nbytes <= limit.limit
