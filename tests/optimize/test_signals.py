"""When a signal acts: never while something is half done, always at the next place where it may."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Iterator

import pytest

from llmsearch_optuna.optimize import signals
from llmsearch_optuna.optimize.signals import SIGNALS, held_back, stop_if_asked, stoppable


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signals._requests == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_a_place_where_it_may_act(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(number)
        done.append("what was half done")
        with stoppable():
            done.append("more")
    assert done == ["what was half done"]


@pytest.mark.parametrize("number", SIGNALS)
def test_it_acts_at_once_where_it_may(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back(), stoppable():
        signal.raise_signal(number)
        done.append("more")
    assert done == []


def test_it_is_not_lost_where_no_such_place_comes() -> None:
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_drops_acts_at_the_next_place() -> None:
    class Thing:
        pass

    rounds = 0
    with pytest.raises(KeyboardInterrupt), held_back():
        for _ in range(3):
            with stoppable():
                rounds += 1
                thing = Thing()
                reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
                del thing
                assert reference() is None
    assert rounds == 1


def test_what_cleans_up_is_not_interrupted_by_the_same_signal_again() -> None:
    cleaned = []
    with pytest.raises(KeyboardInterrupt), held_back():
        try:
            with stoppable():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append("all")
    assert cleaned == ["all"]


def test_who_asks_again_after_a_while_is_served_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "IMPATIENT_AFTER_SECONDS", -1.0)
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        done.append("held back")
        signal.raise_signal(signal.SIGINT)
        done.append("not held back")
    assert done == ["held back"]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back(), stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_nothing_to_do_with_it() -> None:
    said: list[str] = []

    def inside() -> None:
        with held_back(), stoppable():
            stop_if_asked()
            said.append("went on")

    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
    assert said == ["went on"]


def test_blocks_within_blocks_each_meet_their_own_signal() -> None:
    with held_back():
        with pytest.raises(KeyboardInterrupt), held_back():
            signal.raise_signal(signal.SIGINT)
        with stoppable(), stoppable():
            pass
