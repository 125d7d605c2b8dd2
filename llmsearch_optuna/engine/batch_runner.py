"""Runs the batches that the scheduler forms, and makes room where one runs out of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmsearch_optuna.engine.batch_size import BatchLimit
from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import Node
from llmsearch_optuna.engine.completions import completion_of
from llmsearch_optuna.engine.hf_generate import generate_plain
from llmsearch_optuna.engine.input_batch import InputBatch
from llmsearch_optuna.engine.memory import forget_traceback, is_out_of_memory
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.out_of_memory import MemoryReclaimer, NoRoomError, one_row_does_not_fit
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.stop import Stopper
from llmsearch_optuna.engine.scheduler import Batch, DecodeBatch, GenerateBatch, PrefillBatch, PrefixBatch, Scheduler
from llmsearch_optuna.engine.stats import Counters
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.models.tokenization import TokenIds


class BatchRunner:
    """Computes the scores of a batch's nodes, or the completions of its requests.

    Args:
        runner: Runs the model.
        tokenizer: Makes text of what ``model.generate`` returns.
        tokenizer_decode_args: What its ``decode`` is called with.
        cache: Stores scores, keys and values.
        encoder_cache: Stores what an encoder makes for ``model.generate``.
        input_batch: The rows in flight; None where rows are not decoded one by one.
        reclaimer: Makes room.
        scheduler: Ends requests that end here, and queues those again that did not fit.
        counters: Counts tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: PreTrainedTokenizerBase,
        tokenizer_decode_args: Mapping[str, Any],
        *,
        cache: PrefixCache,
        encoder_cache: EncoderCache,
        input_batch: InputBatch | None,
        reclaimer: MemoryReclaimer,
        scheduler: Scheduler,
        counters: Counters,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._tokenizer_decode_args = tokenizer_decode_args
        self._cache = cache
        self._encoder_cache = encoder_cache
        self._input_batch = input_batch
        self._reclaimer = reclaimer
        self._scheduler = scheduler
        self._counters = counters
        self._tried_without_scores: Request | None = None

    def run(self, batch: Batch | None) -> None:
        """Run a batch; None has nothing to compute.

        Where memory runs out the batch is not run, and some memory is given back; its rows are scheduled again.
        """
        if isinstance(batch, PrefixBatch):
            self._compute_prefix(batch.tokens)
        elif isinstance(batch, GenerateBatch):
            self._generate(batch)
        elif isinstance(batch, PrefillBatch):
            self._guarded(lambda: self._prefill(batch.nodes), len(batch.nodes), batch.limit)
        elif isinstance(batch, DecodeBatch):
            self._guarded(lambda: self._decode(batch.nodes), len(batch.nodes), batch.limit)

    def _compute_prefix(self, prefix: TokenIds) -> None:
        try:
            (result,) = self._runner.prefill([prefix])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_traceback(error)
            return  # the prompts are computed whole then, each on its own
        self._counters.total.prefill_tokens += len(prefix)
        self._cache.share_prefix(prefix, result.segment)

    def _prefill(self, nodes: Sequence[Node]) -> None:
        shared = nodes[0].tree.shared_segment
        suffixes = [node.tree.prompt_ids[node.tree.shared :] for node in nodes]
        results = self._runner.prefill(suffixes, [] if shared is None else [shared])
        scores = self._runner.scores(torch.stack([result.state for result in results]))
        for node, suffix, result, node_scores in zip(nodes, suffixes, results, scores, strict=True):
            node.scores = node_scores
            self._cache.store_prompt(node.tree, result.segment, result.cross)
            self._cache.store_scores([node])
            self._counters.total.prefill_tokens += len(suffix)
        self._scheduler.count_computed(nodes)

    def _decode(self, nodes: Sequence[Node]) -> None:
        assert self._input_batch is not None
        self._input_batch.step(nodes)
        self._scheduler.count_computed(nodes)

    def _generate(self, batch: GenerateBatch) -> None:
        first, _ = batch.requests[0]
        started = time.perf_counter()
        try:
            results = generate_plain(
                self._runner.model,
                self._tokenizer,
                [ids for _, ids in batch.requests],
                first.params,
                [row_key(ids, request.occurrence, request.replicate) for request, ids in batch.requests],
                self._tokenizer_decode_args,
                self._encoder_cache,
                first.reasoning,
            )
        except DecodingError as error:
            for request, _ in batch.requests:
                self._scheduler.fail(request, error)
            return
        except Exception as error:
            self._scheduler.requeue(batch)
            self._make_room(error, len(batch.requests), batch.limit, first)
            return
        finally:
            self._runner.timer.add(time.perf_counter() - started)
        self._reclaimer.passed(batch.limit)
        for (request, ids), result in zip(batch.requests, results, strict=True):
            if isinstance(result, DecodingError):
                self._scheduler.fail(request, result)
                continue
            tokens, reason, text = result
            self._counters.generated(request.tag, len(tokens))
            completion = Completion(text, tokens, reason, len(ids))
            if request.reasoning is not None:
                stopper = Stopper(request.params, self._tokenizer, self._tokenizer_decode_args)
                before = () if self._runner.model.config.is_encoder_decoder else ids
                state = request.reasoning.state(before, tokens)
                completion = completion_of(stopper, tokens, reason, len(ids), state)
            self._scheduler.complete(request, completion)

    def _guarded(self, work: Callable[[], None], rows: int, limit: BatchLimit) -> None:
        """Do one pass; when memory runs out, make room so that it can be repeated."""
        try:
            work()
        except Exception as error:
            self._make_room(error, rows, limit, None)
        else:
            self._reclaimer.passed(limit)

    def _make_room(self, error: Exception, rows: int, limit: BatchLimit, generated: Request | None) -> None:
        """Make room for the pass that failed; where not even one row fits, for that row without any scores, or end it.

        Args:
            error: What the pass failed with.
            rows: How many rows it had.
            limit: How many it may have.
            generated: Its first request where it was a call of ``model.generate``.

        Raises:
            Exception: The error itself when it is about something else than memory.
        """
        try:
            self._reclaimer.make_room(error, rows, limit)
        except NoRoomError as full:
            self._last_attempt(str(full), generated)

    def _last_attempt(self, reason: str, generated: Request | None) -> None:
        """Not even one row fits: try its request once more without any scores, or end it."""
        sequence = None if generated is not None else self._scheduler.first_waiting()
        request = generated if sequence is None else sequence.request
        if request is None:
            return
        if request is not self._tried_without_scores and self._reclaimer.make_room_of_scores(reason):
            self._tried_without_scores = request
        elif sequence is None:
            self._scheduler.fail_next(one_row_does_not_fit(reason))
        else:
            self._scheduler.fail_running(sequence, one_row_does_not_fit(reason))
