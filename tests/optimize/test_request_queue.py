from __future__ import annotations

from collections.abc import Hashable, Iterable

from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.optimize.request_queue import RequestQueue

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


def drain(requests: RequestQueue) -> list[tuple[Hashable, int]]:
    found = []
    while finished := requests.poll():
        found += [(f.request.tag, f.request.row) for f in finished]
    return found


def test_what_decides_soonest_goes_first() -> None:
    requests = RequestQueue(OneByOne(), lambda: 2)
    requests.add((row // 2, request("a", row)) for row in range(4))
    requests.add((row // 2, request("b", row)) for row in range(4))
    assert drain(requests) == [(tag, row) for look in (0, 2) for tag in "ab" for row in (look, look + 1)]


def test_no_more_than_can_be_used_is_handed_over() -> None:
    server = OneByOne()
    requests = RequestQueue(server, lambda: 3)
    requests.add((0, request("a", row)) for row in range(10))
    assert len(drain(requests)) == 10
    assert server.most == 3


def test_what_is_cancelled_makes_room() -> None:
    server = OneByOne()
    requests = RequestQueue(server, lambda: 3)
    requests.add((0, request("a", row)) for row in range(10))
    requests.add((1, request("b", row)) for row in range(5))
    requests.poll()
    requests.cancel("a")
    assert drain(requests) == [("b", row) for row in range(5)]
    assert server.most == 3
    requests.add([(0, request("a", 7))])
    assert drain(requests) == [("a", 7)]


def test_requests_are_made_when_it_is_their_turn() -> None:
    made = []

    def requests_of(tag: str) -> Iterable[tuple[int, Request]]:
        for row in range(1000):
            made.append((tag, row))
            yield row // 8, request(tag, row)

    requests = RequestQueue(OneByOne(), lambda: 3)
    requests.add(requests_of("a"))
    requests.add(requests_of("b"))
    requests.poll()
    assert len(made) <= 3 + 2
