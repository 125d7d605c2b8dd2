"""The engine: requests go in, completions come out, and nothing is computed twice.

One loop: admit requests, let them walk down their prompt's tree for as long as the scores are known, then
compute what they wait for in one pass. How tokens are picked, stored and computed stands in the rooms beside.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmsearch_optuna.backends.function import FunctionEngine
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.engine.batch_size import PROMPTS, BatchLimit, BatchSizes
from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache
from llmsearch_optuna.engine.cache.offload import HostOffload
from llmsearch_optuna.engine.cache.prefix_cache import InputBatch, Node, PrefixCache, PromptTree
from llmsearch_optuna.engine.hf_generate import generate_plain, goes_alone
from llmsearch_optuna.engine.memory import (
    automatic_cache_budget,
    cache_bytes_per_token,
    device_name,
    forget_traceback,
    free_bytes,
    is_out_of_memory,
    rows_that_fit,
)
from llmsearch_optuna.engine.model_runner import TOP_CANDIDATES, evaluating, without_cudnn_attention
from llmsearch_optuna.engine.model_runner_seq2seq import model_runner_for
from llmsearch_optuna.engine.out_of_memory import MemoryReclaimer, NoRoomError, _one_row_does_not_fit
from llmsearch_optuna.engine.prompt_encoder import PromptEncoder, common_prefix
from llmsearch_optuna.engine.request import Completion, Finished, Request, log_finished
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.params import SERVER_NAMES, GenerationParams, model_defaults
from llmsearch_optuna.engine.sampling.sampler import needs_full_logits, pick, pick_from_logits, supports
from llmsearch_optuna.engine.sampling.settings import Candidates
from llmsearch_optuna.engine.sampling.stop import Stopper, check_decode_args
from llmsearch_optuna.engine.scheduler import CAUTIOUS_ROWS, MOST_ROWS, PREFILL_TOKENS, SHARED_PREFIX_TOKENS
from llmsearch_optuna.engine.sequence import BeamSequence, RunningSequence, TokenSequence
from llmsearch_optuna.engine.stats import Counters, EngineStats
from llmsearch_optuna.errors import DecodingError, InputError
from llmsearch_optuna.models.tokenization import Positions, TokenIds

if TYPE_CHECKING:
    from llmsearch_optuna.backends.server.backend import ServerBackend
    from llmsearch_optuna.backends.server.dialect import DialectName

logger = logging.getLogger("llmsearch_optuna.engine")

"""A prefix that all prompts share is kept once when it is at least this long."""

"""Steps get hardly faster a row beyond these, and their scores take memory."""

"""Where nothing says what a row takes."""


class Engine(EngineBackend):
    """Decodes many prompts under many parameter sets with one model.

    Tokens do not depend on batch size, order or neighbours: greedy tokens are those of ``model.generate`` on
    the prompt alone (float32), and a sampled token is a function of the prompt, the parameters and their
    ``generation_seed``. Prompts, prefixes and scores of earlier calls are used again within the budget.

    Args:
        model: A Hugging Face model. It decodes in evaluation mode, and is left in the mode that it was in.
        tokenizer: Its tokenizer.
        batch_size: Most rows in one pass; ``"auto"`` estimates it from the free memory.
        cache_budget: Bytes for stored scores, keys and values; ``"auto"`` is half of the free memory, 0 none. On CUDA,
            keys and values that have no room move to half of the host's free memory.
        tokenizer_decode_args: What the tokenizer's ``decode`` is called with; special tokens are skipped unless this
            says otherwise.
        top: How many of the largest logits of a prefix are kept to pick from.

    Raises:
        InputError: For a batch size or ``top`` below 1, a negative budget, or arguments that the tokenizer does not
            take.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | Literal["auto"] = "auto",
        cache_budget: int | Literal["auto"] = "auto",
        tokenizer_decode_args: Mapping[str, Any] | None = None,
        top: int = TOP_CANDIDATES,
    ) -> None:
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f'batch_size is {batch_size!r}; give "auto" or a number of rows from 1 on')
        if top < 1:
            raise InputError(f"top is {top}; give how many of the largest logits to keep, from 1 on")
        if cache_budget != "auto" and cache_budget < 0:
            raise InputError(f'cache_budget is {cache_budget}; give "auto" or a number of bytes, 0 for no cache')
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_decode_args = check_decode_args(tokenizer, tokenizer_decode_args or {})
        self.default_params: dict[str, Any] = model_defaults(model)
        with evaluating(model), without_cudnn_attention():
            self._runner = model_runner_for(model, top=top)
        device = self._runner.device
        budget = automatic_cache_budget(device) if cache_budget == "auto" else cache_budget
        self._cache = PrefixCache(budget, self._runner.start, HostOffload.behind(device))
        maximum = self._estimated_rows(budget) if batch_size == "auto" else batch_size
        self._sizes = BatchSizes(maximum)
        self._prefill_tokens = PREFILL_TOKENS.get(device.type, 1024)
        self._counters = Counters()
        self._stats = self._counters.total
        self._batch: InputBatch | None = None
        self._encoder_cache = EncoderCache(0)
        shape = self._runner.capabilities.shape
        if shape is not None:
            self._batch = InputBatch(self._runner.buffer(min(maximum, 8)), self._cache, self._runner, self._stats)
        else:
            # Where nothing is replayed the budget is free for what the encoder makes.
            self._encoder_cache = EncoderCache(budget)
            logger.warning("%s: %s", type(model).__name__, self._runner.capabilities)
        self._queue: deque[tuple[Request, TokenIds]] = deque()
        self._running: list[RunningSequence] = []
        self._done: list[Finished] = []
        self._reclaimer = MemoryReclaimer(
            self._sizes, self._cache, self._encoder_cache, self._batch, self._stats, device
        )
        self._without_scores: Request | None = None
        self._encoder = PromptEncoder(tokenizer, Positions.of(model.config))
        self._expected: TokenIds | None = None
        self._stoppers: dict[GenerationParams, Stopper] = {}

    @staticmethod
    def from_function(
        function: Callable[[list[str], dict[str, Any]], Iterable[str]],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        default_params: Mapping[str, Any] | None = None,
    ) -> FunctionEngine:
        """Make an engine of a function from prompts and parameters to texts; `search` and `score` take it as a model.

        >>> def echo(prompts, params):
        ...     return [prompt[: params["max_new_tokens"]] for prompt in prompts]
        >>> engine = Engine.from_function(echo)
        >>> engine.generate(["one", "two"], {"max_new_tokens": 2})[0].text
        'on'

        Args:
            function: ``function(prompts, params)`` returns one text a prompt; see `FunctionEngine`. It is asked for a
                few rows at a time (`search` has ``batch_size=`` for how many), and counts by its source text.
            tokenizer: For chat templates, and where tokens have to be counted.
            default_params: What the function does where it is told nothing: the baseline.
        """
        return FunctionEngine(function, tokenizer, dict(default_params or {}))

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the model; all its weights are read for the fingerprint.

        Args:
            tokenizer: The user's, instead of the engine's own.
        """
        from llmsearch_optuna.models.loader import load

        shown = self.tokenizer if tokenizer is None else tokenizer
        return ModelDescription.of_loaded(
            load(self.model, shown),
            tokenizer=shown,
            default_params=self.default_params,
            tokenizer_decode_args=self.tokenizer_decode_args,
        )

    @staticmethod
    def from_server(
        url: str,
        *,
        model: str | None = None,
        tokenizer: Any = None,
        dialect: DialectName | None = None,
        api_key_env: str | None = None,
        concurrency: int | Literal["auto"] = "auto",
        retry_for: float | None = None,
        price: Mapping[str, float] | None = None,
    ) -> ServerBackend:
        """Make an engine of a server with OpenAI's interface; `search` and `score` take it as a model.

        ``search("http://127.0.0.1:8000/v1", ...)`` does the same, and works from a study file and with workers, too.

        Args:
            url: The server's address.
            model: What the server calls its model; by default the only one that it lists.
            tokenizer: The model's, for text that is templated here instead of messages.
            dialect: What kind of server it is; found by asking.
            api_key_env: The environment variable that holds the server's key.
            concurrency: Most requests in flight; ``"auto"`` finds what makes the server fastest.
            retry_for: Seconds for which a server that does not answer is asked again; 600 by default.
            price: What a million tokens cost: ``{"input": 0.5, "output": 1.5}``.

        Raises:
            InputError: The openai package is missing, or an argument cannot be used.
            EngineUnavailableError: The server does not answer.
        """
        from llmsearch_optuna.backends.server import connect

        return connect(
            url,
            model=model,
            tokenizer=tokenizer,
            dialect=dialect,
            api_key_env=api_key_env,
            concurrency=concurrency,
            retry_for=retry_for,
            price=price,
        )

    @property
    def capabilities(self) -> str:
        """What this model gets, in words."""
        return str(self._runner.capabilities)

    @property
    def cache_budget(self) -> int:
        """Bytes that stored scores, keys and values may take."""
        return self._cache.budget

    @property
    def capacity(self) -> int:
        """How many requests it can make use of at the moment."""
        return self._sizes.rows

    @property
    def device_name(self) -> str:
        """What device this is, and how much memory it has."""
        return device_name(self._runner.device)

    @property
    def batch_sizes(self) -> dict[tuple[int, int], int]:
        """(length bucket, beams) -> rows in one pass, where memory has been too short for more; see `batch_sizes`."""
        return self._sizes.learned

    def start_from(self, batch_sizes: Mapping[tuple[int, int], int]) -> None:
        """Begin with batch sizes that were learned before on the same device; tokens do not depend on them."""
        self._sizes.start_from(batch_sizes)

    @property
    def stats(self) -> EngineStats:
        """A snapshot of what has been done so far."""
        self._stats.forward_seconds = self._runner.timer.seconds
        self._stats.cache_bytes = self._cache.nbytes + self._encoder_cache.nbytes
        self._stats.host_bytes = self._cache.host_blocks.nbytes
        self._stats.evictions = self._cache.evictions
        return self._stats.snapshot()

    def tag_stats(self, tag: Hashable) -> EngineStats:
        """Tokens, computed and replayed, of the requests with one tag."""
        return self._counters.of(tag).snapshot()

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        """Decode prompts (texts that are ready for the model) under one set of parameters.

        Args:
            prompts: Any number; equal prompts draw different noise.
            params: Generation parameters by name, over the model's own generation config.

        Returns:
            One completion a prompt, in the order of the prompts.

        Raises:
            DecodingError: For a prompt that could not be decoded.
        """
        complete = params if isinstance(params, GenerationParams) else GenerationParams.of(params, self.default_params)
        tag, seen = object(), Counter[str]()
        requests = []
        for row, prompt in enumerate(prompts):
            requests.append(Request(tag, row, prompt, complete, occurrence=seen[prompt]))
            seen[prompt] += 1
        completions: dict[int, Completion] = {}
        others: list[Finished] = []
        try:
            self.submit(requests)
            while len(completions) < len(requests):
                for finished in self.poll():
                    if finished.request.tag is not tag:
                        others.append(finished)
                    elif finished.completion is None:
                        raise finished.error or DecodingError(f"row {finished.request.row} gave no completion")
                    else:
                        completions[finished.request.row] = finished.completion
        finally:  # whatever ends it, Ctrl-C in a notebook included, leaves nothing of it for the next call
            self.cancel(tag)
            self._done += others
            self._counters.forget(tag)
        return [completions[row] for row in range(len(requests))]

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Say which of these parameters only servers apply; None where there is none."""
        found = ", ".join(name for name in SERVER_NAMES if name in params)
        return f"only servers apply {found}; leave it out, or search a server" if found else None

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        for request in requests:
            if (reason := self.refusal(request.params)) is not None:
                self._fail(request, DecodingError(reason))
                continue
            try:
                self._queue.append((request, self._encoder.encode(request)))
            except DecodingError as error:
                self._fail(request, error)

    def expect(self, requests: Iterable[Request]) -> None:
        """Say what will be asked for in the long run, before the first prompt is computed.

        What these prompts begin with is then computed once for all. Without it those count that are queued when the
        first one is computed, which may be few.
        """
        prompts = set()
        for request in requests:
            with contextlib.suppress(DecodingError):  # said when it is asked for
                ids = self._encoder.encode(request)
                if self._plain_reason(request, ids) is None:
                    prompts.add(ids)
        self._expected = common_prefix(prompts)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued."""
        started = time.perf_counter()
        try:
            with evaluating(self.model), without_cudnn_attention():
                while not self._done and (self._queue or self._running):
                    self._turn()
        finally:
            self._stats.seconds += time.perf_counter() - started
        done, self._done = self._done, []
        log_finished(logger, done)
        return done

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued; what they computed is kept."""
        self._queue = deque(item for item in self._queue if item[0].tag != tag)
        self._done = [finished for finished in self._done if finished.request.tag != tag]
        for sequence in [sequence for sequence in self._running if sequence.request.tag == tag]:
            self._retire(sequence)

    # one turn of the loop

    def _turn(self) -> None:
        """Admit, walk, and compute what the sequences wait for."""
        if self._queue and self._plain_reason(*self._queue[0]) is not None:
            self._decode_plainly()
            return
        self._share_prefix()
        wanted = self._walk()
        while not self._done and (room := self._limit(wanted).rows - len(wanted)) > 0 and self._admit(room):
            wanted = self._walk()
        if self._done or not wanted:
            return
        roots = [node for node in wanted if node.parent is None]
        if roots:
            together = self._prefill_batch(roots)
            self._guarded(lambda: self._prefill(together), len(together), self._limit(together, PROMPTS))
        else:
            limit = self._limit(wanted)
            nodes = wanted[: limit.rows]
            self._guarded(lambda: self._step(nodes), len(nodes), limit)

    def _limit(self, nodes: Sequence[Node], beams: int = 1) -> BatchLimit:
        """How many rows may go into one pass, where the longest row is among these."""
        return self._sizes.of(max((len(node.tree.start) + node.depth for node in nodes), default=0), beams)

    def _admit(self, count: int) -> bool:
        """Start sequences for the next requests that can be decoded row by row; tells whether there were any."""
        before = len(self._running)
        while self._queue and len(self._running) < before + count:
            request, ids = self._queue[0]
            if self._plain_reason(request, ids) is not None:
                break
            self._queue.popleft()
            tree = self._cache.tree(ids)
            try:
                sequence = self._walker(request, tree)
            except DecodingError as error:
                self._fail(request, error)
                continue
            self._cache.visit(tree)
            self._running.append(sequence)
        return len(self._running) > before

    def _walk(self) -> list[Node]:
        """Advance every sequence as far as scores are known; returns the nodes they wait for, oldest first."""
        while True:
            ready = [w for w in self._running if all(node.scores is not None for node in w.frontier)]
            if not ready:
                break
            self._advance_tokens([w for w in ready if isinstance(w, TokenSequence)])
            for sequence in ready:
                if isinstance(sequence, BeamSequence):
                    self._advance_beam(sequence)
        waiting = (node for sequence in self._running for node in sequence.frontier if node.scores is None)
        return list(dict.fromkeys(waiting))

    def _advance_tokens(self, sequences: Sequence[TokenSequence]) -> None:
        """Move these sequences by one token each; all are picked in one call, or in parts where they do not fit."""
        if not sequences:
            return
        try:
            tokens, lookups = self._reclaimer.relieved(lambda: self._pick(sequences), self._cache.release_host)
        except NoRoomError as error:
            if len(sequences) == 1:
                self._give_up(sequences[0], error)
            else:
                half = len(sequences) // 2
                self._advance_tokens(sequences[:half])
                self._advance_tokens(sequences[half:])
            return
        self._stats.lookups += lookups
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            self._counters.picked(sequence.request.tag)
            sequence.advance(token)
            if sequence.reason is not None:
                self._finish(sequence)

    def _pick(self, sequences: Sequence[TokenSequence]) -> tuple[NDArray[np.int64], int]:
        """The next token of each sequence, and how many of them needed all logits; nobody moves."""
        tokens = np.full(len(sequences), -1, dtype=np.int64)
        quick = [i for i, sequence in enumerate(sequences) if not needs_full_logits(sequence.params)]
        if quick:
            tokens[quick] = pick(self._candidates([sequences[i].node for i in quick]), [sequences[i] for i in quick])
        undecided = np.flatnonzero(tokens < 0).tolist()
        if undecided:
            logits = self._logits([sequences[i].node for i in undecided])
            tokens[undecided] = pick_from_logits(logits, [sequences[i] for i in undecided])
        return tokens, len(undecided)

    def _advance_beam(self, sequence: BeamSequence) -> None:
        running = len(sequence.frontier)
        try:
            looked_up = self._reclaimer.relieved(lambda: sequence.advance(self._logits), self._cache.release_host)
        except NoRoomError as error:
            self._give_up(sequence, error)
            return
        for _ in range(running):
            self._counters.picked(sequence.request.tag)
        self._stats.lookups += looked_up
        if sequence.finished:
            self._finish(sequence)

    # computing

    def _prefill_batch(self, roots: Sequence[Node]) -> list[Node]:
        """The prompts for one pass: the longest first, as many as the token limit allows."""
        with_prefix = bool(roots[0].tree.shared)
        alike = sorted((n for n in roots if bool(n.tree.shared) == with_prefix), key=lambda n: -len(n.tree.prompt_ids))
        longest = len(alike[0].tree.prompt_ids) - alike[0].tree.shared
        return alike[: max(1, min(self._limit(alike, PROMPTS).rows, self._prefill_tokens // longest))]

    def _prefill(self, nodes: Sequence[Node]) -> None:
        """Run prompts through the model in one pass."""
        shared = self._cache.shared_segment if nodes[0].tree.shared else None
        suffixes = [node.tree.prompt_ids[node.tree.shared :] for node in nodes]
        results = self._runner.prefill(suffixes, [] if shared is None else [shared])
        scores = [self._runner.scores(result.state[None])[0] for result in results]
        for node, suffix, result, node_scores in zip(nodes, suffixes, results, scores, strict=True):
            node.scores = node_scores
            self._cache.keep_prompt(node.tree, result.segment, result.cross)
            self._cache.keep_scores([node])
            self._stats.prefill_tokens += len(suffix)
        self._count_computed(nodes)

    def _step(self, nodes: Sequence[Node]) -> None:
        assert self._batch is not None
        self._batch.step(nodes)
        self._count_computed(nodes)

    def _share_prefix(self) -> None:
        """Before the first prompt is computed: find what all queued prompts begin with, and compute it once."""
        if self._cache.trees or self._batch is None or self._runner.starts_with_encoder:
            return
        prompts = {ids for request, ids in self._queue if self._plain_reason(request, ids) is None}
        prefix = common_prefix(prompts) if self._expected is None else self._expected
        if len(prefix) < SHARED_PREFIX_TOKENS:
            return
        try:
            (result,) = self._runner.prefill([prefix])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_traceback(error)
            return  # the prompts are computed whole then, each on its own
        self._stats.prefill_tokens += len(prefix)
        self._cache.share_prefix(prefix)
        self._cache.shared_segment = result.segment

    def _decode_plainly(self) -> None:
        """Take requests of one kind off the queue and run them through ``model.generate``."""
        first, prompt = self._queue[0]
        limit = self._sizes.of(len(prompt) + first.params.max_new_tokens, int(first.params.get("num_beams") or 1))
        most = 1 if goes_alone(first.params) else limit.rows  # several that run one by one would only come later
        batch: list[tuple[Request, TokenIds]] = []
        while (
            self._queue
            and len(batch) < most
            and (self._queue[0][0].tag, self._queue[0][0].params) == (first.tag, first.params)
            and self._plain_reason(*self._queue[0]) is not None
        ):
            batch.append(self._queue.popleft())
        started = time.perf_counter()
        try:
            results = generate_plain(
                self.model,
                self.tokenizer,
                [ids for _, ids in batch],
                first.params,
                [row_key(ids, request.occurrence, request.replicate) for request, ids in batch],
                self.tokenizer_decode_args,
                self._encoder_cache,
            )
        except DecodingError as error:
            for request, _ in batch:
                self._fail(request, error)
            return
        except Exception as error:
            self._queue.extendleft(reversed(batch))
            self._make_room(error, len(batch), limit, first)
            return
        finally:
            self._runner.timer.add(time.perf_counter() - started)
        self._reclaimer.passed(limit)
        for (request, ids), (tokens, reason, text) in zip(batch, results, strict=True):
            self._counters.generated(request.tag, len(tokens))
            self._done.append(Finished(request, Completion(text, tokens, reason, len(ids))))

    # running out of memory

    def _guarded(self, work: Callable[[], None], rows: int, limit: BatchLimit) -> None:
        """Do one pass; when memory runs out, make room so that the next turn repeats it."""
        try:
            work()
        except Exception as error:
            self._make_room(error, rows, limit, None)
        else:
            self._reclaimer.passed(limit)

    def _make_room(self, error: Exception, rows: int, limit: BatchLimit, plain: Request | None) -> None:
        """Make room for the pass that failed; where not even one row fits, for that row without any scores, or end it.

        Raises:
            Exception: The error itself when it is about something else than memory.
        """
        try:
            self._reclaimer.make_room(error, rows, limit)
        except NoRoomError as full:
            self._last_attempt(str(full), plain)

    def _last_attempt(self, reason: str, plain: Request | None) -> None:
        """Not even one row fits: try the request that was being computed once more without any scores, or end it."""
        waiting = (w for w in self._running if any(node.scores is None for node in w.frontier))
        sequence = None if plain is not None else next(waiting, None)
        request = plain if sequence is None else sequence.request
        if request is None:
            return
        if request is not self._without_scores and self._reclaimer.make_room_of_scores(reason):
            self._without_scores = request
            return
        if sequence is None:
            self._queue.popleft()
        else:
            self._retire(sequence)
        self._fail(request, _one_row_does_not_fit(reason))

    def _give_up(self, sequence: RunningSequence, error: NoRoomError) -> None:
        """End a request that does not fit even alone."""
        self._retire(sequence)
        self._fail(sequence.request, _one_row_does_not_fit(str(error)))

    # small steps

    def _walker(self, request: Request, tree: PromptTree) -> RunningSequence:
        if tree.root.scores is not None:
            self._stats.prefill_tokens_saved += len(tree.prompt_ids)
        elif tree.shared:
            self._stats.prefill_tokens_saved += tree.shared
        key = row_key(tree.prompt_ids, request.occurrence, request.replicate)
        stopper = self._stoppers.get(request.params)
        if stopper is None:
            stopper = self._stoppers[request.params] = Stopper(
                request.params, self.tokenizer, self.tokenizer_decode_args
            )
        if request.params.kind in ("beam", "beam_sampling"):
            return BeamSequence(request, tree, key, stopper, self._runner.vocab_size)
        return TokenSequence(request, tree, key, stopper)

    def _finish(self, sequence: RunningSequence) -> None:
        try:
            self._done.append(Finished(sequence.request, sequence.completion()))
        except DecodingError as error:
            self._fail(sequence.request, error)
        self._retire(sequence)

    def _retire(self, sequence: RunningSequence) -> None:
        self._running.remove(sequence)
        sequence.leave()
        self._cache.depart(sequence.tree)

    def _fail(self, request: Request, error: DecodingError) -> None:
        self._done.append(Finished(request, None, error))

    def _candidates(self, nodes: Sequence[Node]) -> Candidates:
        scores = [node.scores for node in nodes if node.scores is not None]
        return Candidates(
            np.stack([s.values for s in scores]),
            np.stack([s.ids for s in scores]),
            np.array([s.log_total for s in scores]),
            self._runner.vocab_size,
        )

    def _logits(self, nodes: Sequence[Node]) -> NDArray[np.float32]:
        """All logits of these nodes, ``[nodes, vocab]``; in parts where they do not fit together.

        Raises:
            NoRoomError: Those of one node do not fit, and there is nothing left to give up for them.
        """
        states = [node.scores.state for node in nodes if node.scores is not None]
        try:
            return self._reclaimer.relieved(lambda: self._runner.all_logits(states), self._cache.release)
        except NoRoomError:
            if len(nodes) == 1:
                raise
        half = len(nodes) // 2
        return np.concatenate([self._logits(nodes[:half]), self._logits(nodes[half:])])

    def _count_computed(self, nodes: Sequence[Node]) -> None:
        """Book what was computed on the (oldest) request that waited for it."""
        waiting = {node: w.request.tag for w in reversed(self._running) for node in w.frontier}
        for node in nodes:
            self._counters.computed(waiting.get(node), first_time=not node.known)
            node.known = True

    def _plain_reason(self, request: Request, ids: TokenIds) -> str | None:
        """Why this request cannot be decoded row by row with this model."""
        if self._batch is None:
            return self._runner.capabilities.reason
        longest = self._runner.capabilities.longest
        if longest is not None and len(ids) + request.params.max_new_tokens > longest:
            return f"rows of more than {longest} tokens change others in their batch"
        return self._runner.other_start(request.params) or supports(request.params)

    def _estimated_rows(self, budget: int) -> int:
        """Rows that fit into the memory beside the cache, from what one row of middle length takes."""
        shape, device = self._runner.capabilities.shape, self._runner.device
        if shape is not None:
            fitting = rows_that_fit(free_bytes(device) - budget, shape.bytes_per_token, self._runner.vocab_size)
        else:
            per_token = cache_bytes_per_token(self.model.config, self.model.dtype.itemsize)
            if per_token is None:
                return CAUTIOUS_ROWS
            kept = budget if self.model.config.is_encoder_decoder else 0  # of a decoder nothing is kept here
            fitting = rows_that_fit(free_bytes(device) - kept, per_token, self._runner.vocab_size)
        return max(1, min(MOST_ROWS.get(device.type, CAUTIOUS_ROWS), fitting))
