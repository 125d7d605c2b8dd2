"""Decides what the engine computes next: admits requests, and forms batches of what their sequences wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from llmsearch_optuna.engine.batch_size import PROMPTS, BatchLimit, BatchSizes
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import Node, PromptTree
from llmsearch_optuna.engine.hf_generate import goes_alone
from llmsearch_optuna.engine.memory import cache_bytes_per_token, free_bytes, rows_that_fit
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.out_of_memory import NoRoomError, one_row_does_not_fit
from llmsearch_optuna.engine.prompt_encoder import common_prefix
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.settings import supports
from llmsearch_optuna.engine.sequence import RunningSequence, TokenSequence
from llmsearch_optuna.engine.sequence_sampler import Sampled
from llmsearch_optuna.engine.stats import Counters
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.models.tokenization import TokenIds

SHARED_PREFIX_TOKENS = 16
"""A prefix that all prompts share is stored once when it is at least this long."""

PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""Most prompt tokens in one pass, by type of device."""

MOST_ROWS = {"cpu": 64, "cuda": 256, "mps": 64}
"""Steps get hardly faster a row beyond these, and their scores take memory."""

CAUTIOUS_ROWS = 16
"""Where nothing says what a row takes."""


@dataclass(frozen=True, slots=True)
class PrefixBatch:
    """The tokens that many prompts begin with, to be computed once, before the first prompt."""

    tokens: TokenIds


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Prompts for one pass.

    Attributes:
        nodes: The roots of their trees.
        limit: How many rows may go into such a pass.
    """

    nodes: Sequence[Node]
    limit: BatchLimit


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One token for each of these rows.

    Attributes:
        nodes: The prefixes whose scores are to be computed, none of them a root.
        limit: How many rows may go into such a pass.
    """

    nodes: Sequence[Node]
    limit: BatchLimit


@dataclass(frozen=True, slots=True)
class GenerateBatch:
    """Requests with equal parameters that go through ``model.generate``.

    Attributes:
        requests: Each with the token ids of its prompt.
        limit: How many rows may go into such a call.
    """

    requests: Sequence[tuple[Request, TokenIds]]
    limit: BatchLimit


Batch = PrefixBatch | PrefillBatch | DecodeBatch | GenerateBatch


class Scheduler:
    """Holds the queued requests, the running sequences, and the requests that have ended.

    Args:
        runner: Says what the model can do.
        cache: Has the trees that sequences follow.
        sizes: How many rows go into one pass.
        make_sequence: Makes the sequence of a request on its prompt's tree.
        counters: Counts tokens, for the engine and by tag.

    Attributes:
        finished: Requests that have ended and were not returned yet, in the order in which they ended.
    """

    def __init__(
        self,
        runner: ModelRunner,
        cache: PrefixCache,
        sizes: BatchSizes,
        make_sequence: Callable[[Request, PromptTree], RunningSequence],
        counters: Counters,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._sizes = sizes
        self._make_sequence = make_sequence
        self._counters = counters
        self._prefill_tokens = PREFILL_TOKENS.get(runner.device.type, 1024)
        self._queue: deque[tuple[Request, TokenIds]] = deque()
        self._running: list[RunningSequence] = []
        self._may_share_prefix = runner.capabilities.shape is not None and not runner.starts_with_encoder
        self._expected_prefixes: list[TokenIds] = []
        self.finished: list[Finished] = []

    @property
    def has_work(self) -> bool:
        """Whether any request is queued or running."""
        return bool(self._queue or self._running)

    def has_ready(self) -> bool:
        """Tell whether some sequence can go on without the model."""
        return any(sequence.is_ready for sequence in self._running)

    def ready(self) -> list[RunningSequence]:
        """Return the sequences whose next scores are all there, oldest first."""
        return [sequence for sequence in self._running if sequence.is_ready]

    def add(self, request: Request, prompt_ids: TokenIds) -> None:
        """Queue a request; earlier ones are served first."""
        self._queue.append((request, prompt_ids))

    def expect(self, requests: Iterable[tuple[Request, TokenIds]]) -> None:
        """Share what the prompts of these requests begin with, beside what those of other calls do.

        Without it that counts with which the prompts begin that are queued.
        """
        self._expected_prefixes.append(self._common_prefix(requests))

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag; what they computed stays in the cache."""
        self._queue = deque(item for item in self._queue if item[0].tag != tag)
        self.finished = [finished for finished in self.finished if finished.request.tag != tag]
        for sequence in [sequence for sequence in self._running if sequence.request.tag == tag]:
            self._remove(sequence)

    def take_finished(self) -> list[Finished]:
        """Return the requests that have ended since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def generate_reason(self, request: Request, prompt_ids: TokenIds) -> str | None:
        """Say why a request has to go through ``model.generate``; None where it is decoded row by row."""
        capabilities = self._runner.capabilities
        if capabilities.shape is None:
            return capabilities.reason
        longest = capabilities.longest
        if longest is not None and len(prompt_ids) + request.params.max_new_tokens > longest:
            return f"rows of more than {longest} tokens change others in their batch"
        return self._runner.other_start(request.params) or supports(request.params)

    def schedule(self) -> Batch | None:
        """Admit requests, and return what is to be computed next.

        Returns:
            None where nothing is: sequences can go on from cached scores, or requests have ended meanwhile.
        """
        if self.has_ready():
            return None
        if self._queue and self.generate_reason(*self._queue[0]) is not None:
            return self._generate_batch()
        prefix = self._shared_prefix()
        if prefix:
            return PrefixBatch(prefix)
        waiting = self._waiting()
        while not self.finished and self._admit(waiting):
            if self.has_ready():
                return None
            waiting = self._waiting()
        if self.finished or not waiting:
            return None
        roots = [node for node in waiting if node.parent is None]
        if roots:
            prompts = self._prompts_of_one_pass(roots)
            return PrefillBatch(prompts, self._limit(prompts, PROMPTS))
        limit = self._limit(waiting)
        return DecodeBatch(waiting[: limit.rows], limit)

    def update(self, sampled: Iterable[Sampled]) -> None:
        """Let sequences go on by what was sampled for them; those that are complete, or cannot go on, end."""
        picked: dict[Hashable, int] = {}
        for sequence, outcome, logprob in sampled:
            if isinstance(outcome, NoRoomError):
                self.fail_running(sequence, one_row_does_not_fit(str(outcome)))
                continue
            if isinstance(outcome, DecodingError):
                self.fail_running(sequence, outcome)
                continue
            tag = sequence.request.tag
            picked[tag] = picked.get(tag, 0) + len(sequence.frontier)
            if isinstance(sequence, TokenSequence):
                sequence.cumulative_logprob += logprob
            sequence.advance(outcome)  # type: ignore[arg-type]  # a sequence gets what was sampled for its kind
            if sequence.finished:
                self._finish(sequence)
        for tag, tokens in picked.items():
            self._counters.picked(tag, tokens)

    def count_computed(self, nodes: Sequence[Node]) -> None:
        """Count computed scores for the (oldest) request that waited for them."""
        waiting = {node: s.request.tag for s in reversed(self._running) for node in s.frontier}
        computed: dict[Hashable, int] = {}
        distinct = 0
        for node in nodes:
            tag = waiting.get(node)
            computed[tag] = computed.get(tag, 0) + 1
            distinct += not node.known
            node.known = True
        self._counters.total.distinct_prefixes += distinct
        for tag, tokens in computed.items():
            self._counters.computed(tag, tokens)

    def first_waiting(self) -> RunningSequence | None:
        """Return the oldest sequence that waits for scores."""
        return next((sequence for sequence in self._running if not sequence.is_ready), None)

    def complete(self, request: Request, completion: Completion) -> None:
        """End a request that no sequence was made for."""
        self.finished.append(Finished(request, completion))

    def fail(self, request: Request, error: DecodingError) -> None:
        """End a request that no sequence was made for with an error."""
        self.finished.append(Finished(request, None, error))

    def fail_running(self, sequence: RunningSequence, error: DecodingError) -> None:
        """End the request of a running sequence with an error."""
        self._remove(sequence)
        self.fail(sequence.request, error)

    def fail_next(self, error: DecodingError) -> None:
        """End the first queued request with an error."""
        request, _ = self._queue.popleft()
        self.fail(request, error)

    def requeue(self, batch: GenerateBatch) -> None:
        """Queue the requests of a batch again, before all others."""
        self._queue.extendleft(reversed(batch.requests))

    def _limit(self, nodes: Sequence[Node], beams: int = 1) -> BatchLimit:
        """How many rows may go into one pass, where the longest row is among these."""
        return self._sizes.of(max((len(node.tree.start) + node.depth for node in nodes), default=0), beams)

    def _waiting(self) -> list[Node]:
        """The nodes whose scores sequences wait for, oldest first."""
        waiting = (node for sequence in self._running for node in sequence.frontier if node.scores is None)
        return list(dict.fromkeys(waiting))

    def _admit(self, waiting: Sequence[Node]) -> bool:
        """Start sequences of the next requests, as many as fit beside the waiting nodes; tells whether there were any.

        Only those that are decoded row by row.
        """
        if not self._queue:
            return False
        before, taken = len(self._running), len(waiting)
        longest = max((len(node.tree.start) + node.depth for node in waiting), default=0)
        while self._queue:
            request, prompt_ids = self._queue[0]
            longest = max(longest, len(self._runner.start or prompt_ids))
            if len(self._running) - before + taken >= self._sizes.of(longest).rows:
                break
            if self.generate_reason(request, prompt_ids) is not None:
                break
            self._queue.popleft()
            tree = self._cache.tree(prompt_ids)
            saved = len(prompt_ids) if tree.root.scores is not None else tree.shared
            self._counters.total.prefill_tokens_saved += saved
            try:
                sequence = self._make_sequence(request, tree)
            except DecodingError as error:
                self.fail(request, error)
                continue
            self._cache.acquire(tree)
            self._running.append(sequence)
        return len(self._running) > before

    def _prompts_of_one_pass(self, roots: Sequence[Node]) -> list[Node]:
        """The longest prompts first, as many as the limit of tokens allows."""
        prefix = roots[0].tree.shared_segment
        alike = sorted((n for n in roots if n.tree.shared_segment is prefix), key=lambda n: -len(n.tree.prompt_ids))
        longest = len(alike[0].tree.prompt_ids) - alike[0].tree.shared
        return alike[: max(1, min(self._limit(alike, PROMPTS).rows, self._prefill_tokens // longest))]

    def _generate_batch(self) -> GenerateBatch:
        """Take requests with the tag and parameters of the first one off the queue."""
        first, prompt_ids = self._queue[0]
        beams = int(first.params.get("num_beams") or 1)
        limit = self._sizes.of(len(prompt_ids) + first.params.max_new_tokens, beams)
        most = 1 if goes_alone(first.params) else limit.rows  # several that run one by one would only come later
        batch: list[tuple[Request, TokenIds]] = []
        while (
            self._queue
            and len(batch) < most
            and _told(self._queue[0][0]) == _told(first)
            and self.generate_reason(*self._queue[0]) is not None
        ):
            batch.append(self._queue.popleft())
        return GenerateBatch(batch, limit)

    def _shared_prefix(self) -> TokenIds:
        """What many prompts begin with, each prefix once, before the first prompt; empty where there is none left.

        What is not worth a pass is left out.
        """
        if not self._may_share_prefix:
            return ()
        prefixes = self._expected_prefixes or [self._common_prefix(self._queue)]
        worth = [p for p in dict.fromkeys(prefixes) if len(p) >= SHARED_PREFIX_TOKENS]
        self._expected_prefixes = worth[1:]
        self._may_share_prefix = len(worth) > 1
        return worth[0] if worth else ()

    def _common_prefix(self, requests: Iterable[tuple[Request, TokenIds]]) -> TokenIds:
        return common_prefix({ids for request, ids in requests if self.generate_reason(request, ids) is None})

    def _finish(self, sequence: RunningSequence) -> None:
        try:
            self.complete(sequence.request, sequence.completion())
        except DecodingError as error:
            self.fail(sequence.request, error)
        self._remove(sequence)

    def _remove(self, sequence: RunningSequence) -> None:
        self._running.remove(sequence)
        sequence.leave()
        self._cache.release(sequence.tree)


def automatic_sizes(runner: ModelRunner, cache_budget: int) -> BatchSizes:
    """Rows that fit into the memory that is free now beside the cache, from what one row of each length takes."""
    shape, device, config = runner.capabilities.shape, runner.device, runner.model.config
    most, kept = MOST_ROWS.get(device.type, CAUTIOUS_ROWS), cache_budget
    if shape is not None:
        per_token: int | None = shape.bytes_per_token
    else:
        per_token = cache_bytes_per_token(config, runner.model.dtype.itemsize)
        kept = cache_budget if config.is_encoder_decoder else 0  # of a decoder nothing is kept here
    if per_token is None:
        return BatchSizes(min(most, CAUTIOUS_ROWS))
    return BatchSizes(most, partial(rows_that_fit, free_bytes(device) - kept, per_token, runner.vocab_size))


def _told(request: Request) -> tuple[object, ...]:
    """What requests of one call of ``model.generate`` have in common."""
    return request.tag, request.params, request.reasoning
