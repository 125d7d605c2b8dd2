"""Draws tokens from sorted scores: truncation, noise, and the proof that nothing unseen could win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.gumbel import MAX_GUMBEL, gumbel, gumbel_of_bits, noise_bits
from llmsearch_optuna.engine.sampling.settings import SamplingSettings
from llmsearch_optuna.engine.sampling.truncation import Support, kept_by_shape

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNDECIDED = -1

HOPELESS = 3.0
"""Where so many unseen tokens are expected above the limit, looking costs more than it saves."""


class RowNoise:
    """The noise of some rows at their next position.

    Args:
        seeds, keys, steps: ``[rows]``, see `gumbel`.
    """

    def __init__(self, seeds: Sequence[int], keys: Sequence[int], steps: Sequence[int]) -> None:
        self._seeds = np.array(seeds, dtype=np.uint64)
        self._keys = np.array(keys, dtype=np.uint64)
        self._steps = np.array(steps, dtype=np.int64)

    def of(self, indices: Ints, ids: Ints) -> Floats:
        """Gumbel values of the tokens ``ids [indices, tokens]`` of these rows."""
        return gumbel(self._seeds[indices], self._keys[indices], self._steps[indices], ids)

    def is_below(self, limit: float, row: int, ids: Ints, vocab_size: int) -> bool:
        """Whether all tokens of a row but ``ids`` have noise below ``limit``; False if that is not worth a look."""
        if limit > MAX_GUMBEL:
            return True
        if (vocab_size - len(ids)) * np.exp(-limit) > HOPELESS:
            return False
        everything = np.arange(vocab_size)[None]
        bits = noise_bits(self._seeds[[row]], self._keys[[row]], self._steps[[row]], everything)
        bits[0, ids] = 1
        return bool(gumbel_of_bits(bits.max(keepdims=True))[0, 0] < limit)


def draw(
    scores: Floats,
    ids: Ints,
    bound: Floats,
    tail_low: Floats,
    tail_high: Floats,
    vocab_size: int,
    noise: RowNoise,
    settings: Sequence[SamplingSettings],
) -> Ints:
    """Truncate, add the noise, take the largest; -1 where what is outside the list could change that.

    Args:
        scores, ids: ``[rows, tokens]`` in the order that :func:`in_order` makes.
        bound: ``[rows]``, no token outside the list has a larger score; -inf when nothing is outside.
        tail_low, tail_high: ``[rows]``, limits of the log-sum-exp of the scores outside the list.
        vocab_size: How many tokens there are.
        noise: Of these rows.
        settings: How each row is truncated; its temperature has been applied.
    """
    support = Support(scores, bound, tail_low, tail_high, vocab_size)
    _truncate(support, settings)
    tokens = np.full(len(settings), UNDECIDED, dtype=np.int64)
    hopeful = np.flatnonzero(support.sure > 0)
    for indices in _of_similar_size(hopeful, support.most):
        width = int(support.most[indices].max())
        noisy = noise.of(indices, ids[indices, :width])
        noisy += scores[indices, :width] - scores[indices, :1]
        for place, i in enumerate(indices.tolist()):
            if settings[i].has_shape:
                _cut_to_shape(noisy[place], support, i, settings[i])
        noisy[np.arange(width) >= support.most[indices, None]] = -np.inf
        winners = np.argmax(noisy, axis=1)
        best = noisy[np.arange(len(indices)), winners]
        decided = (winners < support.sure[indices]) & (best > -np.inf)
        for place in np.flatnonzero(decided & support.open[indices]).tolist():
            i = int(indices[place])
            lead = best[place] - (bound[i] - scores[i, 0])
            decided[place] = noise.is_below(lead, i, ids[i], vocab_size)
        tokens[indices[decided]] = ids[indices, winners][decided]
    return tokens


def _truncate(support: Support, settings: Sequence[SamplingSettings]) -> None:
    """Hugging Face's warpers after temperature, up to those that need the exact support."""
    _where_any(support.top_h, [row_settings.top_h for row_settings in settings], np.nan)
    _where_any(support.top_k, [row_settings.top_k for row_settings in settings], 0)
    _where_any(support.top_p, [row_settings.top_p for row_settings in settings], 1.0)
    _where_any(support.min_p, [row_settings.min_p for row_settings in settings], 0.0)
    _where_any(
        support.epsilon, [0.0 if row_settings.has_shape else row_settings.epsilon for row_settings in settings], 0.0
    )


def _where_any(apply: Callable[[Any], None], values: list[Any], neutral: float) -> None:
    if any(value != neutral and value == value for value in values):
        apply(np.array(values))


def _cut_to_shape(noisy: Floats, support: Support, row: int, row_settings: SamplingSettings) -> None:
    """Apply what is not a threshold, or give the row up."""
    if not support.is_exact(row):
        noisy[:] = -np.inf
        return
    size = int(support.most[row])
    kept = kept_by_shape(support.scores[row, :size], row_settings.typical_p, row_settings.epsilon, row_settings.eta)
    noisy[:size][~kept] = -np.inf


def _of_similar_size(indices: Ints, sizes: Ints) -> list[Ints]:
    """Rows in groups, so that one wide row does not make all others draw as much noise."""
    groups = np.searchsorted([64, 256], sizes[indices])
    return [indices[groups == group] for group in np.unique(groups)]


def in_order(scores: NDArray[np.float32], ids: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Descending scores; equal ones by descending id, as Hugging Face's ascending sort leaves them."""
    later, earlier = scores[:, 1:], scores[:, :-1]
    wrong = (later > earlier) | ((later == earlier) & (ids[:, 1:] > ids[:, :-1]))
    unsorted = np.flatnonzero(wrong.any(axis=1))
    if len(unsorted):
        keys = _sort_keys(scores[unsorted], ids[unsorted])
        keys.sort(axis=1)
        keys = keys[:, ::-1]
        scores[unsorted] = _scores_of_keys(keys)
        ids[unsorted] = (keys & np.uint64(0xFFFFFFFF)).astype(np.int32)
    return scores, ids


def _sort_keys(scores: NDArray[np.float32], ids: Ints) -> NDArray[np.uint64]:
    """Integers in the order of (score, id): one sort of plain integers is several times faster than argsort."""
    bits = np.ascontiguousarray(scores + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered.astype(np.uint64) << np.uint64(32)) | ids.astype(np.uint32).astype(np.uint64)


def _scores_of_keys(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return np.ascontiguousarray(bits.astype(np.uint32)).view(np.float32)
