from __future__ import annotations

from collections.abc import Hashable, Iterable

from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.optimize.request_queue import Feeder

PARAMS = GenerationParams.of({"max_new_tokens": 8})


class OneByOne:
    """Ends the oldest request at every poll."""

    def __init__(self) -> None:
        self.queue: list[Request] = []
        self.most = 0

    def submit(self, requests: Iterable[Request]) -> None:
        self.queue += requests
        self.most = max(self.most, len(self.queue))

    def poll(self) -> list[Finished]:
        return [Finished(self.queue.pop(0), Completion("x"))] if self.queue else []

    def cancel(self, tag: Hashable) -> None:
        self.queue = [r for r in self.queue if r.tag != tag]


def request(tag: str, row: int) -> Request:
    return Request(tag, row, "prompt", PARAMS)


def drain(feeder: Feeder) -> list[tuple[Hashable, int]]:
    found = []
    while finished := feeder.poll():
        found += [(f.request.tag, f.request.row) for f in finished]
    return found


def test_what_decides_soonest_goes_first() -> None:
    feeder = Feeder(OneByOne(), lambda: 2)
    feeder.add((row // 2, request("a", row)) for row in range(4))
    feeder.add((row // 2, request("b", row)) for row in range(4))
    assert drain(feeder) == [(tag, row) for look in (0, 2) for tag in "ab" for row in (look, look + 1)]


def test_no_more_than_can_be_used_is_handed_over() -> None:
    server = OneByOne()
    feeder = Feeder(server, lambda: 3)
    feeder.add((0, request("a", row)) for row in range(10))
    assert len(drain(feeder)) == 10
    assert server.most == 3


def test_what_is_cancelled_makes_room() -> None:
    server = OneByOne()
    feeder = Feeder(server, lambda: 3)
    feeder.add((0, request("a", row)) for row in range(10))
    feeder.add((1, request("b", row)) for row in range(5))
    feeder.poll()
    feeder.cancel("a")
    assert drain(feeder) == [("b", row) for row in range(5)]
    assert server.most == 3
    feeder.add([(0, request("a", 7))])
    assert drain(feeder) == [("a", 7)]
