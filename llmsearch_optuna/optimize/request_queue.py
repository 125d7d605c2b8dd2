"""Submits just enough requests to an engine: the rows that decide something soonest go first.

A row behind a pruning step that may end its trial is worth less than one before it, so all running trials take their
first step before any takes its second, and what has not been submitted when a trial ends costs nothing. The order only
saves work; it decides nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count

from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.request import Finished, Request


class RequestQueue:
    """A queue in front of a request server.

    Args:
        server: Decodes.
        capacity: How many requests it can make use of at the moment; more are held back.
    """

    def __init__(self, server: RequestHandler, capacity: Callable[[], int]) -> None:
        self._server = server
        self._capacity = capacity
        self._waiting: list[tuple[int, int, Request, Iterator[tuple[int, Request]]]] = []
        self._submitted: Counter[Hashable] = Counter()
        self._arrivals = count()

    def add(self, requests: Iterable[tuple[int, Request]]) -> None:
        """Queue requests, each with its urgency: a lower number goes first, equal ones in the order of arrival.

        Args:
            requests: All with one tag, the most urgent first. They are taken one by one, when it is their turn, so that
                a long list of them need not exist.
        """
        self._push(next(self._arrivals), iter(requests))

    def poll(self) -> list[Finished]:
        """Keep the server busy until at least one request has ended; empty when there is none left."""
        room = self._capacity() - self._submitted.total()
        chosen = self._take(room)
        self._submitted.update(request.tag for request in chosen)
        self._server.submit(chosen)
        finished = self._server.poll()
        self._submitted.subtract(item.request.tag for item in finished)
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag."""
        self._waiting = [item for item in self._waiting if item[2].tag != tag]
        heapq.heapify(self._waiting)
        del self._submitted[tag]
        self._server.cancel(tag)

    def _push(self, arrival: int, requests: Iterator[tuple[int, Request]]) -> None:
        """Queue the next one of these requests."""
        if (following := next(requests, None)) is not None:
            urgency, request = following
            heapq.heappush(self._waiting, (urgency, arrival, request, requests))

    def _take(self, room: int) -> list[Request]:
        chosen: list[Request] = []
        while self._waiting and len(chosen) < room:
            _, arrival, request, others = heapq.heappop(self._waiting)
            chosen.append(request)
            self._push(arrival, others)
        return chosen
