"""How busy a study keeps a server: requests in flight against its slots, beside a plain loop with the same requests.

    python -m tests.benchmarks.servers [--trials 40] [--rows 20] [--holdout 0.6] [--tokens 8] [--slots 2]

The demo's study, on the openings of its dialogues, on llama.cpp's own server, which LLAMA_CPP_PYTHON runs on one
thread. Every request is noted when it is sent and when its answer is here. A slot is idle where fewer requests than
slots are in flight, from the first request of the search to its last. The plain loop sends the requests that were
answered once more, over the same client and with as many at once; nothing is drawn, scored or stored there.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.connection import Address, Connection
from llmsearch_optuna.backends.server.reply import Reply
from llmsearch_optuna.backends.server.request_body import ServerRequest, server_request
from llmsearch_optuna.engine.request import Request
from tests.servers.programs import llama_cpp
from tests.servers.served_study import TASK, dialogues

SAMPLING = {
    "do_sample": True,
    "temperature": FloatDistribution(0.1, 1.2),
    "top_p": FloatDistribution(0.5, 1.0),
    "top_k": CategoricalDistribution([0, 20, 50]),
}


class InFlight:
    """When requests were sent, and when they were answered or broken off."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    async def watch(self, asked: Awaitable[Any]) -> Any:
        """Wait for an answer, and note both times."""
        self.events.append((time.perf_counter(), 1))
        try:
            return await asked
        finally:
            self.events.append((time.perf_counter(), -1))

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return self.events[-1][0] - self.events[0][0]

    def seconds_for(self, count: int) -> float:
        """From the first request to the end of so many."""
        ends = [at for at, change in self.events if change < 0]
        return ends[count - 1] - self.events[0][0]

    def spans(self) -> list[tuple[float, int]]:
        """How long so many requests were in flight, span by span."""
        found, now = [], 0
        for (at, change), (until, _) in pairwise(self.events):
            now += change
            found.append((until - at, now))
        return found

    def share(self, slots: int) -> float:
        """The mean of the requests in flight, at most as many as there are slots, against the slots."""
        return sum(seconds * min(count, slots) for seconds, count in self.spans()) / (slots * self.seconds)

    def longest_idle(self, slots: int) -> list[float]:
        """The longest spans with less in flight than there are slots, in seconds."""
        return sorted((seconds for seconds, count in self.spans() if count < slots), reverse=True)[:8]


class WatchedServer(ServerBackend):
    """Notes what is in flight, and what was answered."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.in_flight = InFlight()
        self.answered: list[ServerRequest] = []

    def _asker(self, request: Request) -> Callable[[], Awaitable[Reply]]:
        ask = super()._asker(request)

        async def watched() -> Reply:
            reply: Reply = await self.in_flight.watch(ask())
            self.answered.append(server_request(self.identity.dialect, self.identity.model, request, None))
            return reply

        return watched


def openings(rows: int) -> list[dict[str, str]]:
    """The first lines of dialogues: short prompts, which leave a server the least time beside us."""
    return [{**row, "dialogue": row["dialogue"].splitlines()[0]} for row in dialogues(rows)]


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def searched(url: str, given: argparse.Namespace) -> tuple[WatchedServer, float, float]:
    """The study; returns its backend, its seconds and the processor seconds of this process."""
    backend = WatchedServer(url, skip_probe=True)
    begun, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = search(
            backend,
            openings(given.rows),
            {"max_new_tokens": given.tokens, **SAMPLING},
            **TASK,
            n_trials=given.trials,
            holdout=given.holdout,
            timeout=given.seconds,
            storage=f"sqlite:///{folder}/s.db",
            progress=False,
        )
    states = [trial.state.name for trial in result.trials]
    say(f"{len(states)} trials, {states.count('PRUNED')} of them pruned; {len(backend.answered)} requests")
    return backend, time.perf_counter() - begun, time.process_time() - processor


async def plain_loop(url: str, asked: list[ServerRequest], at_once: int) -> InFlight:
    """The same requests in the same order, as many at once."""
    connection = Connection(Address.of(url), None, timeout=600.0)
    slots, in_flight = asyncio.Semaphore(at_once), InFlight()

    async def ask(request: ServerRequest) -> None:
        async with slots:
            await in_flight.watch(connection.post(request.path, request.body))

    await asyncio.gather(*(ask(request) for request in asked))
    await connection.close()
    return in_flight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--holdout", type=float, default=0.6)
    parser.add_argument("--seconds", type=float, help="ends the search; the verdict follows")
    parser.add_argument("--plain", type=int, default=200, help="requests of the plain loop, the first ones")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--slots", type=int, default=2)
    given = parser.parse_args()
    logging.getLogger("llmsearch_optuna").setLevel(logging.ERROR)
    with llama_cpp(given.slots) as server:
        begun = server.processor_seconds
        backend, seconds, processor = searched(server.url, given)
        between = server.processor_seconds
        ours, at_once = backend.in_flight, backend.capacity // 2
        say(f"search: {seconds:.1f} s, {processor:.1f} s of processor time here; at most {at_once} in flight")
        say(f"slots in use: {ours.share(given.slots):.1%} of {ours.seconds:.1f} s from the first request to the last")
        spans = ", ".join(f"{span:.2f} s" for span in ours.longest_idle(given.slots))
        say(f"longest with an idle slot: {spans}")
        asked = backend.answered[: given.plain]
        plain = asyncio.run(plain_loop(server.url, asked, at_once))
        taken = ((between - begun) / len(backend.answered), (server.processor_seconds - between) / len(asked))
        say(f"the server's processor time a request: {taken[0]:.3f} s in the study, {taken[1]:.3f} s in the plain loop")
        say(
            f"the first {len(asked)} requests: {ours.seconds_for(len(asked)):.1f} s in the study, {plain.seconds:.1f} s"
        )
        say(f"slots in use in the plain loop: {plain.share(given.slots):.1%}")


if __name__ == "__main__":
    main()
