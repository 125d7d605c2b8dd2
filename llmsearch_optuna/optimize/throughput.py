"""Measures the throughput of an engine from outside: rows, tokens and seconds between one answer and the next."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.request import Finished, Request

WINDOW_SECONDS = 60.0
_MOST_SPANS = 512


@dataclass(frozen=True, slots=True)
class Span:
    """What was done between two answers of the engine.

    Attributes:
        rows: Requests that ended.
        prompt_tokens: Prompt tokens that went through the model.
        computed: Next-token scores that were computed.
        picked: Tokens that were picked, from computed scores or known ones; every beam counts.
        seconds: Wall-clock seconds.
        end: When it ended, by the meter's clock.
    """

    rows: int
    prompt_tokens: float
    computed: float
    picked: float
    seconds: float
    end: float = 0.0


class ThroughputMeter:
    """Passes requests to an engine, and measures the latest few hundred polls.

    Args:
        server: Decodes.
        counters: The engine's counters so far (see `EngineStats`); empty where it keeps none, and then every
            token counts as computed.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        server: RequestHandler,
        counters: Callable[[], Mapping[str, Any]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._counters = counters
        self._clock = clock
        self._last = counters()
        self.spans: deque[Span] = deque(maxlen=_MOST_SPANS)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        self._server.submit(requests)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued."""
        begun = self._clock()
        finished = self._server.poll()
        self.spans.append(self._span(finished, begun))
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued; what they computed is kept."""
        self._server.cancel(tag)

    @property
    def rows_per_second(self) -> float | None:
        """Rows that ended a second, over the last minute of work; None before the first one."""
        if not self.spans:
            return None
        recent = [span for span in self.spans if self.spans[-1].end - span.end < WINDOW_SECONDS]
        begun = recent[0].end - recent[0].seconds
        passed = recent[-1].end - begun
        return sum(span.rows for span in recent) / passed if passed > 0 else None

    @property
    def replayed_share(self) -> float | None:
        """The share of all tokens so far that were picked from scores known before; None without counters."""
        picked, replayed = self._last.get("tokens"), self._last.get("replayed_tokens")
        return None if not picked or replayed is None else float(replayed) / float(picked)

    def _span(self, finished: Sequence[Finished], begun: float) -> Span:
        end = self._clock()
        before, self._last = self._last, self._counters()
        if "tokens" in self._last:
            names = ("prefill_tokens", "forward_tokens", "tokens")
            prompts, computed, picked = (float(self._last.get(n, 0) - before.get(n, 0)) for n in names)
        else:
            tokens = sum(max(1, len(f.completion.token_ids)) for f in finished if f.completion is not None)
            prompts, computed, picked = 0.0, float(tokens), float(tokens)
        return Span(len(finished), prompts, computed, picked, end - begun, end)


ATTRIBUTE = "engine"
"""Begins the names of these attributes; alone it holds what one session of an earlier version left."""

Counters = dict[str, int | float]


@contextlib.contextmanager
def stored_engine_work(study: optuna.Study, session: str, stats: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Store with the study what its engine does in this block, also where the block is interrupted.

    After any other error nothing is stored: it may be the database's own.

    Args:
        study: The study.
        session: A name that no other block has.
        stats: The engine's counters since it was made (see `EngineStats`); empty where it keeps none.
    """
    before = stats()
    try:
        yield
    except KeyboardInterrupt:
        # A database that does not take the counters must not hide that somebody is waiting for the end.
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            _store(study, session, counters_since(before, stats()))
        raise
    _store(study, session, counters_since(before, stats()))


def engine_work(attributes: Mapping[str, Any]) -> Counters:
    """What all sessions together did, from the study's attributes: counts and seconds add up, bytes are the most."""
    total: Counters = {}
    for name, counters in attributes.items():
        if name == ATTRIBUTE or name.startswith(f"{ATTRIBUTE}_"):
            total = _together(total, counters)
    return total


def _store(study: optuna.Study, session: str, work: Counters) -> None:
    if any(value for name, value in work.items() if not _is_level(name)):
        study.set_user_attr(f"{ATTRIBUTE}_{session}", work)


def counters_since(before: Mapping[str, Any], now: Mapping[str, Any]) -> Counters:
    """What an engine did after an earlier moment: it may have served other studies, and earlier sessions of this."""
    numbers = {name: value for name, value in now.items() if isinstance(value, int | float)}
    return {name: value if _is_level(name) else value - before.get(name, 0) for name, value in numbers.items()}


def _together(one: Mapping[str, int | float], other: Mapping[str, int | float]) -> Counters:
    pairs = {name: (one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}
    return {name: max(pair) if _is_level(name) else sum(pair) for name, pair in pairs.items()}


def _is_level(name: str) -> bool:
    """Whether this is what something takes at a moment, where all other counters only grow."""
    return name.endswith("_bytes")
