"""What an engine has done so far, in counts and seconds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters of one engine.

    Attributes:
        tokens: Tokens that were picked, for all requests.
        forward_tokens: Next-token scores computed by a forward pass of the row decoder (prompts included).
        distinct_prefixes: Different (prompt, prefix) pairs whose scores were ever asked for: the floor.
        replayed_tokens: Tokens picked from scores that were there already.
        prefill_tokens: Prompt tokens that went through the model.
        prefill_tokens_saved: Prompt tokens of requests that did not have to.
        recomputed_tokens: Tokens whose keys and values had been evicted and were computed again.
        steps: Decoding passes over the slot buffer.
        step_rows: Rows of all those passes together.
        lookups: Picks that needed all logits, not only the largest.
        plain_requests: Requests that went through ``model.generate``.
        out_of_memory: Times that memory ran out.
        evictions: Things evicted from the cache.
        cache_bytes: Bytes that stored scores, keys and values take now.
        host_bytes: Bytes of keys and values that have moved to the host's memory.
        seconds: Wall-clock seconds inside the engine.
        forward_seconds: Those of them that were spent inside the model.
    """

    tokens: int = 0
    forward_tokens: int = 0
    distinct_prefixes: int = 0
    replayed_tokens: int = 0
    prefill_tokens: int = 0
    prefill_tokens_saved: int = 0
    recomputed_tokens: int = 0
    steps: int = 0
    step_rows: int = 0
    lookups: int = 0
    plain_requests: int = 0
    out_of_memory: int = 0
    evictions: int = 0
    cache_bytes: int = 0
    host_bytes: int = 0
    seconds: float = 0.0
    forward_seconds: float = 0.0

    def snapshot(self) -> EngineStats:
        """A copy that later work does not change."""
        return EngineStats(**asdict(self))


class Counters:
    """Counts for the whole engine and for each tag."""

    def __init__(self) -> None:
        self.total = EngineStats()
        self._tags: dict[Hashable, EngineStats] = {}

    def of(self, tag: Hashable) -> EngineStats:
        """Tokens, computed and replayed, of the requests with one tag."""
        return self._tags.get(tag, EngineStats())

    def forget(self, tag: Hashable) -> None:
        """Drop the counts of a tag; those of the engine stay."""
        self._tags.pop(tag, None)

    def picked(self, tag: Hashable, tokens: int) -> None:
        """So many tokens were picked, from known scores unless :meth:`computed` says otherwise."""
        for stats in (self.total, self._tags.setdefault(tag, EngineStats())):
            stats.tokens += tokens
            stats.replayed_tokens += tokens

    def generated(self, tag: Hashable, tokens: int) -> None:
        """A request went through ``model.generate`` and got so many tokens."""
        for stats in (self.total, self._tags.setdefault(tag, EngineStats())):
            stats.plain_requests += 1
            stats.tokens += tokens

    def computed(self, tag: Hashable, scores: int) -> None:
        """So many scores were computed, on behalf of this tag: the tokens picked from them are not replayed."""
        for stats in (self.total, self._tags.setdefault(tag, EngineStats())):
            stats.forward_tokens += scores
            stats.replayed_tokens -= scores
