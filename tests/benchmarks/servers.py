"""How busy a study keeps a server, and what it costs beside a plain loop: requests in flight, clock, tokens.

    python -m tests.benchmarks.servers [--trials 40] [--rows 20] [--holdout 0.6] [--tokens 8] [--slots 2]

The demo's study, on the openings of its dialogues, on llama.cpp's own server, which LLAMA_CPP_PYTHON runs on one
thread. Every request is noted when it is sent and when its answer is here. A slot is idle where fewer requests than
slots are in flight, from the first request of the search to its last. Then `servers_loop` runs as many trials with the
same space on the same rows and server; it has no verdict, so the rows that were held out are counted apart.
Other work on the machine lengthens the clock, and hardly the processor time of the server's process.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from llmsearch_optuna import search
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.reply import Reply
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.search_result import SearchResult
from tests.benchmarks.servers_loop import Progress, plain_study, tokens_until
from tests.servers.programs import llama_cpp
from tests.servers.served_study import TASK, dialogues

SEARCHED: dict[str, BaseDistribution] = {
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
    """Notes what is in flight, and how much was answered."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.in_flight = InFlight()
        self.answered = 0

    def _asker(self, request: Request) -> Callable[[], Awaitable[Reply]]:
        ask = super()._asker(request)

        async def watched() -> Reply:
            reply: Reply = await self.in_flight.watch(ask())
            self.answered += 1
            return reply

        return watched


def openings(rows: int) -> list[dict[str, str]]:
    """The first lines of dialogues: short prompts, which leave a server the least time beside us."""
    return [{**row, "dialogue": row["dialogue"].splitlines()[0]} for row in dialogues(rows)]


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def searched(backend: WatchedServer, given: argparse.Namespace) -> SearchResult:
    """The study, with its verdict where rows are held out."""
    with tempfile.TemporaryDirectory() as folder:
        return search(
            backend,
            openings(given.rows),
            {"max_new_tokens": given.tokens, "do_sample": True, **SEARCHED},
            **TASK,
            n_trials=given.trials,
            holdout=given.holdout,
            holdout_replicates=1,
            storage=f"sqlite:///{folder}/s.db",
            progress=False,
        )


def search_rows(result: SearchResult, rows: int) -> list[tuple[str, str]]:
    """Prompts and references of the rows that the trials were scored on."""
    taken = sorted({int(row) for row in result.completions(0)["row"]})
    chosen = [openings(rows)[row] for row in taken]
    return [(TASK["prompt"].format(**row), row["summary"]) for row in chosen]


def progress_of(result: SearchResult) -> list[Progress]:
    """Tokens and best score after each trial, in the order in which they ended; pruned ones cost, and score nothing."""
    ended = sorted((t for t in result.trials if t.state.is_finished()), key=lambda t: str(t.datetime_complete))
    tokens, best, found = 0, 0.0, []
    for trial in ended:
        tokens += int(trial.user_attrs["tokens"])
        if trial.state is TrialState.COMPLETE:
            best = max(best, float(trial.value or 0.0))
        found.append(Progress(tokens, best))
    return found


def say_idle(name: str, in_flight: InFlight, slots: int) -> None:
    """Say how much of the time the server's slots had something to do."""
    spans = ", ".join(f"{span:.2f} s" for span in in_flight.longest_idle(slots))
    say(f"{name}: slots in use {in_flight.share(slots):.1%} of {in_flight.seconds:.1f} s; longest idle: {spans}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--holdout", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--slots", type=int, default=2)
    given = parser.parse_args()
    logging.getLogger("llmsearch_optuna").setLevel(logging.ERROR)
    with llama_cpp(given.slots) as server:
        at_first = server.processor_seconds
        backend, begun, processor = WatchedServer(server.url, skip_probe=True), time.perf_counter(), time.process_time()
        result = searched(backend, given)
        seconds, processor = time.perf_counter() - begun, time.process_time() - processor
        between = server.processor_seconds
        states = [trial.state.name for trial in result.trials]
        say(f"study: {len(states)} trials, {states.count('PRUNED')} of them pruned; {backend.answered} requests")
        say(f"study: {seconds:.1f} s, {processor:.1f} s of processor time here")
        taken = between - at_first
        say(f"study: {taken:.1f} s in the server, {taken / backend.answered:.3f} s a request")
        say_idle("study", backend.in_flight, given.slots)

        rows, in_flight = search_rows(result, given.rows), InFlight()
        loop = plain_study(
            server.url,
            rows,
            SEARCHED,
            tokens=given.tokens,
            trials=given.trials,
            at_once=2 * given.slots,
            watch=in_flight,
        )
        say(f"loop: {given.trials} trials on the same {len(rows)} rows, no verdict; {loop.requests} requests")
        taken = server.processor_seconds - between
        say(f"loop: {loop.seconds:.1f} s, {loop.processor_seconds:.1f} s of processor time here")
        say(f"loop: {taken:.1f} s in the server, {taken / loop.requests:.3f} s a request")
        say_idle("loop", in_flight, given.slots)
    ours, theirs = progress_of(result), loop.progress
    score = min(ours[-1].best, theirs[-1].best)
    say(f"best mean score on the searched rows: study {ours[-1].best:.4f}, loop {theirs[-1].best:.4f}")
    say(f"tokens generated in trials: study {ours[-1].tokens}, loop {theirs[-1].tokens}")
    say(f"tokens until {score:.4f}: study {tokens_until(ours, score)}, loop {tokens_until(theirs, score)}")


if __name__ == "__main__":
    main()
