"""Which tokens are still possible after top-k, top-p and the like, when only the largest scores are known.

All of them keep the most likely tokens (typical_p excepted), so what is possible is a beginning of the sorted
list. Where the unseen tail could move its end, two ends are kept: what is surely in and what may be in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TOP_H_TOKENS = 100
"""How many tokens Hugging Face's top-h looks at."""

ROUNDING = 1e-9
"""Relative room for the order of summation where a tail is involved."""


class Support:
    """The possible tokens of some rows, as counts of the sorted lists.

    Attributes:
        scores: ``[rows, tokens]`` float64, descending; equal scores with descending token ids (Hugging Face sorts
            ascending, in no stated order of equals; a stable sort would give this one).
        bound: ``[rows]``, no token outside the list has a larger score; -inf when nothing is outside.
        sure: ``[rows]``, this many from the front are possible.
        most: ``[rows]``, no more than these are.
        open: ``[rows]``, whether tokens outside the list may be possible as well.
    """

    def __init__(self, scores: Floats, bound: Floats, tail_low: Floats, tail_high: Floats, vocab_size: int) -> None:
        """``tail_low`` and ``tail_high`` are limits of the log of the sum of exp(score) outside the list."""
        self.scores = scores
        self.bound = bound
        self._vocab_size = vocab_size
        self._top = scores[:, 0]
        self._ranked = _count(scores > bound[:, None])  # nothing unseen stands between these
        self.most = _count(scores > -np.inf)
        self.sure = self.most.copy()
        self.open: Bools = tail_high > -np.inf
        with np.errstate(over="ignore", invalid="ignore"):
            shift = np.where(np.isfinite(self._top), self._top, 0.0)
            self._tail_low: Floats = np.exp(tail_low - shift)
            self._tail_high: Floats = np.exp(tail_high - shift)
        self._mass: Floats | None = None

    def top_h(self, coefficient: Floats) -> None:
        """Keep tokens while the entropy they hold among the first 100 is within a share; nan rows are left alone."""
        for row in np.flatnonzero(~np.isnan(coefficient)):
            size = min(TOP_H_TOKENS, self._vocab_size)
            known = size <= self._ranked[row] or not self.open[row]
            if not known:
                self.sure[row] = 0
                continue
            scores = self.scores[row, : min(size, int(self.most[row]))]
            log_p = scores - _log_sum_exp(scores)
            entropy = np.cumsum(-np.exp(log_p) * log_p)
            # the sum of all may be rounded to either side of itself
            kept = max(1, int(np.count_nonzero(entropy <= coefficient[row] * entropy[-1] * (1 + 1e-12))))
            self.sure[row] = self.most[row] = kept
            self.open[row] = False
            self._tail_low[row] = 0.0

    def top_k(self, k: Ints) -> None:
        """Keep the ``k`` largest and what equals the last of them; 0 leaves a row alone."""
        active = (k > 0) & (k < self._vocab_size)
        if not active.any():
            return
        size = self.scores.shape[1]
        last = np.take_along_axis(self.scores, np.clip(k - 1, 0, size - 1)[:, None], axis=1)
        kept = _count(self.scores >= last)
        exact = active & (k <= self._ranked)
        self.sure = np.where(exact, np.minimum(self.sure, kept), self.sure)
        self.most = np.where(exact, np.minimum(self.most, kept), self.most)
        uncertain = active & ~exact & self.open
        self.sure = np.where(uncertain, np.minimum(self.sure, self._ranked), self.sure)
        self.open &= ~exact
        self._tail_low = np.where(active, 0.0, self._tail_low)

    def top_p(self, p: Floats) -> None:
        """Keep tokens while those before them hold less than ``p``; 1 leaves a row alone."""
        active = p < 1.0
        if not active.any():
            return
        mass, before = self._masses()
        low, high = self._totals(mass)
        first = np.arange(self.scores.shape[1]) == 0
        ranked = (self._ranked > 0) | ~self.open
        surely = (before < (p * low)[:, None]) | (first & ranked[:, None])
        possibly = (before < (p * high)[:, None]) | first
        sure = np.where(self.open, np.minimum(_count(surely), self._ranked), _count(surely))
        held = np.where(self._ranked > 0, _at(mass, self._ranked - 1), 0.0)
        self.sure = np.where(active, np.minimum(self.sure, sure), self.sure)
        self.most = np.where(active, np.minimum(self.most, _count(possibly)), self.most)
        self.open &= ~active | (held < p * high)
        self._tail_low = np.where(active, 0.0, self._tail_low)

    def min_p(self, share: Floats) -> None:
        """Keep tokens that are at least ``share`` times as likely as the first; 0 leaves a row alone."""
        with np.errstate(divide="ignore"):
            below = np.log(share)
        top = self._top
        self._threshold(share > 0, np.maximum(top, np.where(self.open, self.bound, top)) + below, top + below)

    def epsilon(self, epsilon: Floats) -> None:
        """Keep tokens whose probability is at least ``epsilon``, and the first; 0 leaves a row alone."""
        active = epsilon > 0
        if not active.any():
            return
        mass, _ = self._masses()
        low, high = self._totals(mass)
        with np.errstate(divide="ignore"):
            limit = self._top + np.log(epsilon)
            surely, possibly = limit + np.log(high), limit + np.log(low)
        first_is_known = (self._ranked > 0) | ~self.open
        surely = np.where(first_is_known, np.minimum(surely, self._top), surely)
        self._threshold(active, surely, np.minimum(possibly, self._top))

    def is_exact(self, row: int) -> bool:
        """Whether it is known exactly which tokens of this row are possible."""
        return bool(not self.open[row] and self.sure[row] == self.most[row])

    def _threshold(self, active: Bools, surely: Floats, possibly: Floats) -> None:
        """Keep what reaches ``surely``, and perhaps what reaches ``possibly``."""
        if not active.any():
            return
        sure = np.minimum(self.sure, _count(self.scores >= surely[:, None]))
        self.sure = np.where(active, sure, self.sure)
        most = np.minimum(self.most, _count(self.scores >= possibly[:, None]))
        self.most = np.where(active, most, self.most)
        self.open &= ~active | (self.bound >= possibly)
        self._tail_low = np.where(active, 0.0, self._tail_low)

    def _masses(self) -> tuple[Floats, Floats]:
        """exp(score) relative to the first, summed up to and before each place."""
        if self._mass is None:
            with np.errstate(invalid="ignore"):
                self._mass = np.exp(self.scores - self._top[:, None])
        mass = np.cumsum(self._mass, axis=1)
        before = np.zeros_like(mass)
        before[:, 1:] = mass[:, :-1]
        return mass, before

    def _totals(self, mass: Floats) -> tuple[Floats, Floats]:
        """Limits of the sum over all that is possible."""
        low = np.where(self.sure > 0, _at(mass, self.sure - 1), 0.0)
        high = _at(mass, self.most - 1)
        low = np.where(self.open, (low + self._tail_low) * (1 - ROUNDING), low)
        high = np.where(self.open, (high + self._tail_high) * (1 + ROUNDING), high)
        return low, high


def kept_by_own(
    scores: NDArray[np.float32], top_n_sigma: float | None, tfs: float | None, top_a: float | None
) -> NDArray[np.float32]:
    """What the processors of `hf_processors` leave of all scores ``[vocab]`` of one row, many times as fast."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if top_n_sigma is not None:
            possible = scores[np.isfinite(scores)].astype(np.float64)
            limit = np.float32(scores.max() - np.float32(top_n_sigma * possible.std()))
            scores = np.where(scores < limit, -np.inf, scores).astype(np.float32)
        if tfs is not None and len(scores) > 2:
            scores = _without_tail(scores, tfs)
        if top_a is not None:
            exact = scores.astype(np.float64)
            log_p = exact - _log_sum_exp(exact)
            scores = np.where(log_p < np.log(top_a) + 2 * log_p.max(), -np.inf, scores).astype(np.float32)
    return scores


def _without_tail(scores: NDArray[np.float32], tfs: float) -> NDArray[np.float32]:
    ordered = np.sort(scores)[::-1]
    p = np.exp(ordered.astype(np.float64) - ordered[0])
    p /= p.sum()
    curvature = np.abs(np.diff(p, n=2))
    sums = np.cumsum(curvature)
    total = curvature.sum()
    if not total > 0:
        return scores
    kept = 1 + int(np.count_nonzero(sums <= tfs * total))
    last = ordered[min(kept, len(scores) - 1) - 1]
    equal = np.flatnonzero(scores == last)
    dropped = equal[: len(equal) - (kept - int(np.count_nonzero(scores > last)))]
    scores = np.where(scores < last, -np.inf, scores).astype(np.float32)
    scores[dropped] = -np.inf
    return scores


def kept_by_shape(scores: Floats, typical_p: float, epsilon: float, eta: float) -> Bools:
    """What typical_p, epsilon and eta cutoffs leave of a row whose possible tokens are exactly known, ``[tokens]``.

    Neutral values are 1, 0 and 0.
    """
    kept = np.ones(len(scores), dtype=np.bool_)
    if typical_p < 1.0:
        log_p = scores - _log_sum_exp(scores)
        p = np.exp(log_p)
        distance = np.abs(-log_p + np.sum(p * log_p))
        order = np.argsort(distance, kind="stable")
        last = min(int(np.count_nonzero(np.cumsum(p[order]) < typical_p)), len(scores) - 1)
        kept = distance <= distance[order[last]]
    if epsilon > 0.0:
        log_p = scores - _log_sum_exp(scores[kept])
        kept &= (log_p >= np.log(epsilon)) | (scores >= scores[kept].max())
    if eta > 0.0:
        log_p = scores - _log_sum_exp(scores[kept])
        entropy = -float(np.sum(np.exp(log_p[kept]) * log_p[kept]))
        limit = min(np.log(eta), 0.5 * np.log(eta) - entropy)
        kept &= (log_p >= limit) | (scores >= scores[kept].max())
    return kept


def _log_sum_exp(scores: Floats) -> float:
    top = scores.max()
    return float(top + np.log(np.exp(scores - top).sum()))


def _count(condition: Bools) -> Ints:
    """How many of each row, ``[rows]``; where conditions hold for a beginning of the row it is that beginning."""
    counts: Ints = np.sum(condition, axis=1, dtype=np.int64)
    return counts


def _at(values: Floats, places: Ints) -> Floats:
    """One value of each row; a place before the first counts as the first."""
    found: Floats = np.take_along_axis(values, np.maximum(places, 0)[:, None], axis=1)[:, 0]
    return found
