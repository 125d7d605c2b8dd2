"""Picks the next token of many rows at once, each under its own parameters, on the host.

The result is defined by Hugging Face's processors, in its order, on the unpadded row; then the largest score,
or when sampling the largest sum of score and row-keyed noise. A list of the largest logits usually proves it;
where it does not, all logits decide. No model, and no state beside the rows, enters here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.draw import UNDECIDED, RowNoise, draw, in_order
from llmsearch_optuna.engine.sampling.gumbel import gumbel
from llmsearch_optuna.engine.sampling.logits_processors import LogitsProcessor
from llmsearch_optuna.engine.sampling.mirostat import MirostatState
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow, RowScores
from llmsearch_optuna.engine.sampling.settings import (
    NARROW,
    Floats,
    Ints,
    SamplingSettings,
    needs_full_logits,
    settings_of,
    settings_of_rows,
    supports,
)
from llmsearch_optuna.engine.sampling.truncation import kept_by_own
from llmsearch_optuna.engine.sampling.xtc import coin, without_top_choices

__all__ = ["SamplerRow", "needs_full_logits", "pick", "pick_from_logits", "supports"]

TOTAL_TOLERANCE = 1e-5
"""Room for the rounding of a ``log_total`` that was summed up in float32."""

FULL_WIDTH = 2048
"""How many of all logits are sorted before sorting all of them."""


class SamplerRow(ProcessedRow, Protocol):
    """A row that waits for its next token. It may also carry ``seen`` (see `ProcessedRow`)."""

    @property
    def mirostat(self) -> MirostatState | None:
        """Its limits, where its parameters ask for Mirostat."""
        ...

    @property
    def params(self) -> GenerationParams:
        """How its tokens are picked."""
        ...

    @property
    def row_key(self) -> int:
        """Whose noise it draws."""
        ...

    @property
    def step(self) -> int:
        """How many tokens it has generated: the position of the noise."""
        ...


def pick(candidates: Candidates, rows: Sequence[SamplerRow]) -> Ints:
    """The next token of each row, ``[rows]``, or -1 where the candidates cannot prove it.

    A token that is returned is the one that :func:`pick_from_logits` finds.
    """
    tokens = np.full(len(rows), UNDECIDED, dtype=np.int64)
    settings = settings_of_rows(rows)
    narrow: list[int] = []
    wide: list[int] = []
    for index, row_settings in enumerate(settings):
        if not row_settings.needs_full_logits:
            (narrow if row_settings.width <= NARROW else wide).append(index)
    if narrow:
        plain = [index for index in narrow if settings[index].is_argmax]
        if plain:
            tokens[plain] = _largest(candidates, plain)
        _decide(tokens, candidates, NARROW, [i for i in narrow if not settings[i].is_argmax], rows, settings)
        wide.extend(index for index in narrow if tokens[index] < 0 and not settings[index].is_argmax)
    if candidates.values.shape[1] > NARROW or any(settings[index].width > NARROW for index in wide):
        _decide(tokens, candidates, candidates.values.shape[1], wide, rows, settings)
    return tokens


def pick_from_logits(logits: NDArray[np.float32], rows: Sequence[SamplerRow]) -> Ints:
    """The next token of each row, ``[rows]``, from all its logits ``[rows, vocab]``; never -1.

    Where every token is forbidden the result is token 0, as in greedy search by Hugging Face.
    """
    return np.array(
        [_pick_one(scores, row, settings_of(row.params)) for scores, row in zip(logits, rows, strict=True)],
        dtype=np.int64,
    )


# ---- rows of candidates ---------------------------------------------------------------------------------------------


def _largest(candidates: Candidates, indices: list[int]) -> Ints:
    """The first token among the largest logits, as ``argmax`` over all logits finds it."""
    values, ids = candidates.values, candidates.ids
    tokens = ids[indices, 0].astype(np.int64)
    if values.shape[1] == 1:
        return tokens if candidates.vocab_size == 1 else np.full_like(tokens, UNDECIDED)
    for place in np.flatnonzero(values[indices, 0] == values[indices, 1]).tolist():
        row = indices[place]
        equal = values[row] == values[row, 0]
        complete = not equal.all() or len(equal) == candidates.vocab_size
        tokens[place] = ids[row][equal].min() if complete else UNDECIDED
    return tokens


def _decide(
    tokens: Ints,
    candidates: Candidates,
    width: int,
    indices: list[int],
    rows: Sequence[SamplerRow],
    settings: Sequence[SamplingSettings],
) -> None:
    """Fill in the tokens of these rows as far as their first ``width`` candidates prove them."""
    if not indices:
        return
    chosen = [rows[i] for i in indices]
    prepared = _Prepared(candidates, width, indices, chosen, [settings[i] for i in indices])
    sampled = [place for place, i in enumerate(indices) if settings[i].sampled]
    for place, i in enumerate(indices):
        if not settings[i].sampled:
            tokens[i] = prepared.largest(place)
    if sampled:
        drawn = prepared.draw(sampled, [chosen[place] for place in sampled], [settings[indices[p]] for p in sampled])
        tokens[[indices[place] for place in sampled]] = drawn


class _Prepared:
    """Some rows' candidates after the processors, with what is known of all other tokens."""

    def __init__(
        self,
        candidates: Candidates,
        width: int,
        indices: list[int],
        rows: Sequence[SamplerRow],
        settings: Sequence[SamplingSettings],
    ) -> None:
        self.scores = candidates.values[indices, :width].astype(np.float32)
        self.ids = candidates.ids[indices, :width].astype(np.int64)
        self.vocab_size = candidates.vocab_size
        raw = self.scores.astype(np.float64)
        self.outside = np.full(len(indices), candidates.vocab_size - raw.shape[1])
        self.first, self.bound = raw[:, 0].copy(), raw[:, -1].copy()
        with np.errstate(invalid="ignore", over="ignore"):
            listed = np.exp(raw - self.first[:, None]).sum(axis=1)
            total = np.exp(candidates.log_total[indices] - self.first)
        self.tail_low = np.maximum(total * (1 - TOTAL_TOLERANCE) - listed, 0.0)
        self.tail_high = np.maximum(total * (1 + TOTAL_TOLERANCE) - listed, total * TOTAL_TOLERANCE)
        self.lost = np.zeros(len(indices), dtype=np.bool_)
        places = None
        for place, (row, row_settings) in enumerate(zip(rows, settings, strict=True)):
            if row_settings.processors:
                places = np.zeros(candidates.vocab_size, dtype=np.int64) if places is None else places
                self._apply(place, row, row_settings.processors, places)
        self.outside[self.bound == -np.inf] = 0
        nothing = self.outside == 0
        self.bound[nothing] = -np.inf
        self.tail_low[nothing] = self.tail_high[nothing] = 0.0

    def largest(self, place: int) -> int:
        """The first of the largest scores of a row."""
        scores = self.scores[place]
        top = scores.max()
        if self.lost[place] or top <= self.bound[place] or top == -np.inf:
            return UNDECIDED
        return int(self.ids[place][scores == top].min())

    def draw(self, places: list[int], rows: Sequence[SamplerRow], settings: Sequence[SamplingSettings]) -> Ints:
        """Sample the rows at these places."""
        temperature = np.array([row_settings.temperature for row_settings in settings])
        divisor = temperature.astype(np.float32)
        with np.errstate(over="ignore"):
            scores = self.scores[places] / divisor[:, None]
            bound = (self.bound[places].astype(np.float32) / divisor).astype(np.float64)
        overflown = ~(scores.max(axis=1) < np.inf)
        scores[overflown] = 0.0
        tail = self._tail_at(places, 1.0 / temperature)
        scores, ids = in_order(scores, self.ids[places])
        drawn = draw(scores.astype(np.float64), ids, bound, *tail, self.vocab_size, _noise_of(rows, settings), settings)
        drawn[self.lost[places] | overflown] = UNDECIDED
        return drawn

    def _apply(
        self, place: int, row: SamplerRow, processors: Sequence[LogitsProcessor], places: NDArray[np.int64]
    ) -> None:
        row_scores = RowScores(self.scores[place], self.ids[place], places)
        for processor in processors:
            processor(row_scores, row)
        self.lost[place] = row_scores.raised
        if row_scores.forced:
            self.outside[place] = 0
        elif row_scores.lowered:
            lowered = row_scores.lowered * np.exp(self.bound[place] - self.first[place])
            self.tail_low[place] = max(0.0, self.tail_low[place] - lowered)

    def _tail_at(self, places: list[int], power: Floats) -> tuple[Floats, Floats]:
        """Limits of log of the sum of exp(power * logit) over the tokens outside the list.

        The sum at power 1 is known. For powers above 1 each term is at most its term at power 1 times that of
        the largest possible, and the sum is least when all are equal; below 1 it is the other way round.
        """
        first, outside = self.first[places], self.outside[places]
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = self.bound[places] - first
            count, low, high = np.log(outside), np.log(self.tail_low[places]), np.log(self.tail_high[places])
            at_the_bound = (power - 1) * largest
            all_equal = (1 - power) * count
            steep = power > 1
            upper = np.where(steep, high + at_the_bound, power * high + all_equal)
            lower = np.where(steep, power * low + all_equal, low + at_the_bound)
            upper = np.minimum(upper, count + power * largest) + power * first
            lower = lower + power * first
        nothing = outside == 0
        upper[nothing] = -np.inf
        lower[nothing | (self.tail_low[places] == 0)] = -np.inf
        return np.minimum(lower, upper), upper


# ---- rows of all logits ---------------------------------------------------------------------------------------------


def _pick_one(logits: NDArray[np.float32], row: SamplerRow, row_settings: SamplingSettings) -> int:
    row_scores = RowScores(logits.astype(np.float32), None, None)
    for processor in row_settings.processors:
        processor(row_scores, row)
    scores = row_scores.scores
    if not row_settings.sampled:
        return int(np.argmax(scores))
    if row_settings.has_own:
        scores = kept_by_own(scores, row_settings.top_n_sigma, row_settings.tfs, row_settings.top_a)
    if row_settings.xtc_probability and _throw(row, row_settings) <= row_settings.xtc_probability:
        scores = without_top_choices(scores, row_settings.xtc_threshold)
    with np.errstate(over="ignore"):
        scores = _without_infinity(scores / np.float32(row_settings.temperature))
    if row_settings.has_mirostat:
        return _draw_by_mirostat(scores, row, row_settings)
    if not row_settings.is_truncated:
        return _draw_from_whole(scores, row, row_settings)
    for width in (FULL_WIDTH, len(scores)):
        if width <= len(scores):
            token = _draw_from_largest(scores, width, row, row_settings)
            if token != UNDECIDED:
                return token
    return 0


def _throw(row: SamplerRow, row_settings: SamplingSettings) -> float:
    return coin(row_settings.seed, row.row_key, row.step)


def _draw_from_whole(scores: NDArray[np.float32], row: SamplerRow, row_settings: SamplingSettings) -> int:
    top = scores.max()
    if top == -np.inf:
        return 0
    noisy = gumbel(row_settings.seed, [row.row_key], [row.step], np.arange(len(scores))[None])[0]
    noisy += scores.astype(np.float64) - np.float64(top)
    return int(np.argmax(noisy))


def _draw_by_mirostat(scores: NDArray[np.float32], row: SamplerRow, row_settings: SamplingSettings) -> int:
    state = row.mirostat
    assert state is not None
    top = scores.max()
    if top == -np.inf:
        return 0
    exact = scores.astype(np.float64) - np.float64(top)
    log_p = exact - np.log(np.exp(exact).sum())
    kept = state.kept(log_p, row.step)
    noisy = gumbel(row_settings.seed, [row.row_key], [row.step], kept[None])[0] + log_p[kept]
    token = int(kept[np.argmax(noisy)])
    state.took(token, log_p, row.step)
    return token


def _draw_from_largest(scores: NDArray[np.float32], width: int, row: SamplerRow, row_settings: SamplingSettings) -> int:
    """Draw from the ``width`` largest scores, knowing all of them."""
    size = len(scores)
    no_tail = np.array([-np.inf])
    bound = tail = no_tail
    ids = np.arange(size)
    if width < size:
        places = np.argpartition(scores, size - width)
        ids, others = places[size - width :], scores[places[: size - width]].astype(np.float64)
        bound = others.max(keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = bound + np.log(np.exp(others - bound).sum()) if np.isfinite(bound[0]) else no_tail
    ordered, ordered_ids = in_order(scores[ids][None], ids[None].copy())
    drawn = draw(
        ordered.astype(np.float64),
        ordered_ids,
        bound,
        tail,
        tail,
        size,
        _noise_of([row], [row_settings]),
        [row_settings],
    )
    return int(drawn[0])


def _without_infinity(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of which none is nan or +inf (float16 models overflow); +inf outweighs all that is finite."""
    top = scores.max()
    if np.isfinite(top):
        return scores
    return np.where(scores == np.inf, np.float32(0.0), np.where(np.isnan(scores) | (top == np.inf), -np.inf, scores))


def _noise_of(rows: Sequence[SamplerRow], settings: Sequence[SamplingSettings]) -> RowNoise:
    return RowNoise([r.seed for r in settings], [row.row_key for row in rows], [row.step for row in rows])
