"""What is given up, and in which order, when memory runs out.

Keys and values of earlier rows first, then the prompts of rows in flight, then half of the batch and its buffer.
Nothing here decides which row fails when not even one fits; that is said to whoever asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from llmsearch_optuna.engine.batch_size import BatchLimit, BatchSizes
from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.input_batch import InputBatch
from llmsearch_optuna.engine.memory import (
    forget_traceback,
    give_back,
    is_out_of_memory,
)
from llmsearch_optuna.engine.stats import EngineStats
from llmsearch_optuna.errors import DecodingError

logger = logging.getLogger("llmsearch_optuna.engine")

CALM_PASSES = 64
"""So many passes without trouble end a shortage."""

T = TypeVar("T")


class NoRoomError(Exception):
    """Not even one row fits into memory; the message names the error that said so."""


class MemoryReclaimer:
    """Gives memory of one device back, in a fixed order.

    Args:
        sizes: How many rows go into one pass.
        cache: Keys, values and scores of earlier rows.
        encoder_cache: What an encoder has made of earlier prompts.
        batch: The rows in flight; None where rows are not decoded one by one.
        stats: Where every shortage is counted.
        device: Where memory is short.
    """

    def __init__(
        self,
        sizes: BatchSizes,
        cache: PrefixCache,
        encoder_cache: EncoderCache,
        batch: InputBatch | None,
        stats: EngineStats,
        device: torch.device,
    ) -> None:
        self._sizes = sizes
        self._cache = cache
        self._encoder_cache = encoder_cache
        self._batch = batch
        self._stats = stats
        self._device = device
        self._buffer_is_gone = False
        self._calm = 0

    def passed(self, limit: BatchLimit) -> None:
        """Note that a pass has fitted."""
        limit.succeeded()
        self._buffer_is_gone = False
        self._calm += 1
        if self._calm == CALM_PASSES:
            self._cache.stores_running_prompts = True

    def make_room(self, error: Exception, rows: int, limit: BatchLimit) -> None:
        """Give something up after a pass over ``rows`` rows has failed, so that it can be repeated.

        Raises:
            Exception: The error itself when it is about something else than memory.
            NoRoomError: One row alone does not fit, and nothing but next-token scores is left to give up for it.
        """
        reason = self._met(error)
        try:
            freed = self._cache.evict_blocks() + self._encoder_cache.evict()
            if freed:
                logger.warning("out of memory (%s): gave back %d bytes of cached keys and values", reason, freed)
            elif freed := self._cache.evict_running_prompts():
                logger.warning("out of memory (%s): gave back %d bytes of prompts in flight", reason, freed)
            elif self._batch is not None and self._batch.slots > rows and not self._sizes.is_of_prompts(limit):
                logger.warning("out of memory with %d rows (%s): gave back a batch for more", rows, reason)
                self._batch.discard()
            elif self._sizes.ran_out(limit, rows):
                logger.warning("out of memory with %d rows (%s): going on with %d", rows, reason, limit.rows)
            elif self._batch is not None and not self._buffer_is_gone:
                self._buffer_is_gone = True
                self._batch.discard()
            else:
                raise NoRoomError(reason)
        finally:
            give_back(self._device)

    def make_room_of_scores(self, reason: str) -> bool:
        """Give up the next-token scores of earlier rows for a last attempt; tells whether there were any."""
        freed = self._cache.evict_scores()
        give_back(self._device)
        if freed:
            logger.warning("out of memory with one row (%s): gave back %d bytes of next-token scores", reason, freed)
        return bool(freed)

    def retry(self, work: Callable[[], T], evict: Callable[[], int]) -> T:
        """Do what changes nothing before it is through; again whenever memory runs out and ``evict`` frees some.

        Raises:
            NoRoomError: There is nothing left to give up for it.
        """
        while True:
            try:
                return work()
            except Exception as error:
                reason = self._met(error)
            freed = evict()
            give_back(self._device)
            if not freed:
                raise NoRoomError(reason)

    def _met(self, error: Exception) -> str:
        """Count a shortage and let go of what its error holds; returns the error's type and first line.

        Raises:
            Exception: The error itself when it is about something else than memory.
        """
        if not is_out_of_memory(error):
            raise error
        text = str(error)
        reason = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
        forget_traceback(error)
        self._calm = 0
        self._stats.out_of_memory += 1
        return reason


def one_row_does_not_fit(reason: str) -> DecodingError:
    """Return the error of a row that no memory can be made free for."""
    return DecodingError(
        f"one row alone does not fit into memory ({reason}); use a smaller model, dtype or max_new_tokens"
    )
