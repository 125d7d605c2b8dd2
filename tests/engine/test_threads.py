"""The number of threads is the fastest of those that were timed, and torch's setting is put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.threads import PATIENCE, ROUNDS, ThreadTuner


class Machine:
    """Stands for torch's setting and the clock; a step takes what ``cost(threads, rows)`` says."""

    def __init__(self, setting: int, cost: Callable[[int, int], float]) -> None:
        self.setting = setting
        self.cost = cost
        self.now = 0.0
        self.used: list[int] = []
        self.tuner = ThreadTuner(clock=lambda: self.now, get_threads=lambda: self.setting, set_threads=self.set)

    def set(self, threads: int) -> None:
        self.setting = threads

    def steps(self, count: int, rows: int = 8) -> None:
        for _ in range(count):
            with self.tuner.timed(rows):
                self.used.append(self.setting)
                self.now += self.cost(self.setting, rows)


COMPARISON = 1 + 4 * ROUNDS
"""Steps after which 8, 4, 2 and 1 threads have been compared: the first one does not count."""


def test_a_quiet_machine_keeps_all_threads() -> None:
    machine = Machine(8, lambda threads, rows: 1 / threads**0.5)
    machine.steps(COMPARISON)
    assert machine.tuner.threads == 8
    assert machine.setting == 8


def test_beside_other_work_one_thread_is_used_and_the_slow_ones_are_tried_once() -> None:
    machine = Machine(8, lambda threads, rows: 1.0 if threads == 1 else 10.0)
    machine.steps(COMPARISON)
    assert machine.tuner.threads == 1
    assert [machine.used[1:].count(threads) for threads in (8, 4, 2)] == [1, 1, 1]
    assert machine.setting == 8, "torch's own setting is back"


@given(st.dictionaries(st.sampled_from([8, 4, 2, 1]), st.floats(0.1, 10.0), min_size=4), st.integers(1, 64))
def test_what_is_chosen_is_never_clearly_slower_than_the_fastest(costs: dict[int, float], rows: int) -> None:
    machine = Machine(8, lambda threads, rows: costs[threads])
    machine.steps(COMPARISON, rows)
    assert costs[machine.tuner.threads] <= min(costs.values()) / 0.9 + 1e-9


def test_a_small_advantage_does_not_move_it_away_from_the_setting() -> None:
    machine = Machine(2, lambda threads, rows: 1.0 if threads == 2 else 0.95)
    machine.steps(COMPARISON)
    assert machine.tuner.threads == 2


def test_it_compares_again_when_the_machine_gets_busy_and_when_it_gets_quiet() -> None:
    busy = False
    machine = Machine(2, lambda threads, rows: (9.0 if threads == 2 else 1.5) if busy else 1.0 / threads)
    machine.steps(COMPARISON)
    assert machine.tuner.threads == 2
    busy = True
    machine.steps(4 + 2 * ROUNDS)
    assert machine.tuner.threads == 1
    busy = False
    machine.steps(2 * PATIENCE + 2 * ROUNDS)
    assert machine.tuner.threads == 2


def test_few_rows_and_many_rows_are_no_reason_to_compare_again() -> None:
    machine = Machine(2, lambda threads, rows: rows / threads)
    machine.steps(COMPARISON, rows=4)
    before = len(machine.used)
    machine.steps(10, rows=40)
    machine.steps(10, rows=1)
    assert set(machine.used[before:]) == {2}


def test_a_setting_that_the_user_changes_is_heeded() -> None:
    machine = Machine(8, lambda threads, rows: 1.0 if threads == 1 else 10.0)
    machine.steps(COMPARISON)
    machine.setting = 4
    with machine.tuner.using():
        assert machine.setting == 4
    machine.steps(COMPARISON)
    assert max(machine.used[COMPARISON:]) == 4
    assert machine.setting == 4


def test_a_step_that_fails_teaches_nothing_and_puts_the_setting_back() -> None:
    machine = Machine(2, lambda threads, rows: 1.0 if threads == 1 else 10.0)
    machine.steps(COMPARISON)
    with pytest.raises(MemoryError), machine.tuner.timed(8):
        raise MemoryError
    assert machine.setting == 2
    assert machine.tuner.threads == 1


def test_torchs_own_setting_is_read_and_left_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        tuner = ThreadTuner()
        tuner.threads = 1
        with tuner.using():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
