"""When a request is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.backends.server.backoff import LONGEST_SECONDS, Backoff


@given(
    retry_for=st.floats(0, 1000),
    asked=st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=60),
    jitter=st.lists(st.floats(0, 1), min_size=60, max_size=60),
)
def test_the_last_attempt_comes_when_the_time_is_up(
    retry_for: float, asked: list[float | None], jitter: list[float]
) -> None:
    now, draws = 0.0, iter(jitter)
    backoff = Backoff(retry_for, clock=lambda: now, jitter=lambda: next(draws))
    for retry_after in asked:
        delay = backoff.next_delay(retry_after)
        if delay is None:
            assert now >= retry_for
            break
        assert 0 < delay <= retry_for - now
        assert delay <= max(LONGEST_SECONDS, retry_after or 0.0)
        assert retry_after is None or delay >= min(retry_after, retry_for - now)
        now += delay


def test_waits_double_until_half_a_minute() -> None:
    backoff = Backoff(1e6, clock=lambda: 0.0, jitter=lambda: 1.0)
    assert [backoff.next_delay() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_nothing_is_tried_again_when_that_is_asked_for() -> None:
    assert Backoff(0.0).next_delay() is None
