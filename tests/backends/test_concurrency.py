"""How many requests are in flight: a simulated server says how fast it is."""

from __future__ import annotations

from collections.abc import Callable

from llmsearch_optuna.backends.server.concurrency import ConcurrencyLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(limit: ConcurrencyLimit, clock: Clock, rate_at: Callable[[int], float], completions: int) -> list[int]:
    """Let requests end at the rate that the server has at each limit."""
    limits = []
    for _ in range(completions):
        clock.now += 1.0 / rate_at(limit.limit)
        limit.succeeded(1.0, is_saturated=True)
        limits.append(limit.limit)
    return limits


def test_it_grows_while_the_server_becomes_faster_and_then_stays() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(4, clock=clock)
    limits = drive(limit, clock, lambda n: float(min(n, 24)), 4000)
    assert limits[0] == 4
    assert max(limits) <= 48
    settled = limits[-1000:]
    assert sum(24 <= n <= 32 for n in settled) > 0.8 * len(settled)


def test_it_stays_with_the_slots_where_more_are_of_no_use() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(2, clock=clock)
    limits = drive(limit, clock, lambda n: float(min(n, 2)), 2000)
    assert sum(n == 2 for n in limits) > 0.8 * len(limits)
    assert max(limits) <= 3


def test_it_gives_way_to_an_overloaded_server_and_aims_lower() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(16, clock=clock)
    limit.failed(is_overload=True)
    assert limit.limit == 8
    drive(limit, clock, lambda n: float(n), 20)
    assert limit.limit == 12


def test_a_broken_connection_lowers_it_until_requests_succeed_again() -> None:
    limit = ConcurrencyLimit(8, is_fixed=True)
    for _ in range(5):
        limit.failed(is_overload=False)
    assert limit.limit == 1
    for _ in range(20):
        limit.succeeded(1.0, is_saturated=True)
    assert limit.limit == 8


def test_what_a_user_asks_for_is_never_exceeded() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(3, is_fixed=True, clock=clock)
    assert max(drive(limit, clock, float, 500)) == 3


def test_a_server_that_has_little_to_do_says_nothing_about_its_limit() -> None:
    limit = ConcurrencyLimit(4)
    for _ in range(200):
        limit.succeeded(1.0, is_saturated=False)
    assert limit.limit == 4
