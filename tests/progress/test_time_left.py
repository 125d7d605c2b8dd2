"""The time left follows the pace of the latest trials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.progress import TimeLeft
from llmsearch_optuna.progress.time_left import Interval, covered_seconds, seconds_per_trial, trials_left


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_follows_the_latest_trials() -> None:
    clock = Clock()
    left = TimeLeft(clock=clock, window=2)
    assert left.seconds(3) is None
    for seconds in (100.0, 10.0, 10.0):
        clock.now += seconds
        left.trial_ended()
    assert left.seconds(3) == pytest.approx(30.0)
    clock.now += 4
    assert left.seconds(3) == pytest.approx(26.0)
    clock.now += 400
    assert left.seconds(3) == 0.0


INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda t: Interval(t[0], t[0] + t[1])), max_size=8
)


@given(INTERVALS)
def test_trials_that_run_together_count_once(intervals: list[Interval]) -> None:
    seconds = {second for i in intervals for second in range(int(i.begun), int(i.ended))}
    assert covered_seconds(intervals) == len(seconds)


def test_a_pause_does_not_count_and_trials_beside_each_other_are_faster() -> None:
    assert seconds_per_trial([Interval(0, 10), Interval(1000, 1020)]) == 15.0
    assert seconds_per_trial([Interval(0, 10), Interval(0, 10)]) == 5.0
    assert seconds_per_trial([]) is None


def test_the_time_before_the_latest_trials_belongs_to_earlier_ones() -> None:
    assert seconds_per_trial([Interval(0, 100), Interval(0, 110), Interval(100, 120)], window=2) == 10.0


def test_a_trial_under_way_counts_by_what_is_left_of_it() -> None:
    assert trials_left(10, 4, [0.5, 0.25]) == 5.25
    assert trials_left(10, 10, [0.5]) == 0.0
