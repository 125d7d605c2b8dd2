"""Picks the next token of many rows at once, each under its own parameters, on the host.

The result is defined by Hugging Face's processors, in its order, on the unpadded row; then the largest score,
or when sampling the largest sum of score and row-keyed noise. A list of the largest logits usually proves it;
where it does not, all logits decide. No model, and no state beside the rows, enters here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList

from llmsearch_optuna.decoding.names import RULES
from llmsearch_optuna.decoding.noise import MAX_GUMBEL, gumbel, gumbel_of_bits, noise_bits
from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.decoding.processors import own_processors
from llmsearch_optuna.decoding.rules import RowScores, Rule, RuledRow, rules_of
from llmsearch_optuna.decoding.truncation import Support, kept_by_shape

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNDECIDED = -1

_NO_CONTEXT = torch.LongTensor(1, 0)

TOTAL_TOLERANCE = 1e-5
"""Room for the rounding of a ``log_total`` that was summed up in float32."""

NARROW = 128
"""Most rows are decided by their first candidates; only the others look at the whole list."""

FULL_WIDTH = 2048
"""How many of all logits are sorted before sorting all of them."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The largest logits of each row.

    Attributes:
        values: ``[rows, K]`` float32, descending.
        ids: ``[rows, K]``, the tokens they belong to.
        log_total: ``[rows]`` float64, the log-sum-exp over the whole vocabulary.
        vocab_size: How many logits there are.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.integer[Any]]
    log_total: Floats
    vocab_size: int


class PickRow(RuledRow, Protocol):
    """A row that waits for its next token. It may also carry ``seen`` (see ``rules.RuledRow``)."""

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


def pick(candidates: Candidates, rows: Sequence[PickRow]) -> Ints:
    """The next token of each row, ``[rows]``, or -1 where the candidates cannot prove it.

    A token that is returned is the one that :func:`pick_from_logits` finds.
    """
    tokens = np.full(len(rows), UNDECIDED, dtype=np.int64)
    recipes = [_recipe(row.params) for row in rows]
    narrow: list[int] = []
    wide: list[int] = []
    for index, recipe in enumerate(recipes):
        if not recipe.needs_full_logits:
            (narrow if recipe.width <= NARROW else wide).append(index)
    if narrow:
        plain = [index for index in narrow if recipes[index].is_argmax]
        if plain:
            tokens[plain] = _largest(candidates, plain)
        _decide(tokens, candidates, NARROW, [i for i in narrow if not recipes[i].is_argmax], rows, recipes)
        wide.extend(index for index in narrow if tokens[index] < 0 and not recipes[index].is_argmax)
    if candidates.values.shape[1] > NARROW or any(recipes[index].width > NARROW for index in wide):
        _decide(tokens, candidates, candidates.values.shape[1], wide, rows, recipes)
    return tokens


def pick_from_logits(logits: NDArray[np.float32], rows: Sequence[PickRow]) -> Ints:
    """The next token of each row, ``[rows]``, from all its logits ``[rows, vocab]``; never -1.

    Where every token is forbidden the result is token 0, as in greedy search by Hugging Face.
    """
    return np.array(
        [_pick_one(scores, row, _recipe(row.params)) for scores, row in zip(logits, rows, strict=True)], dtype=np.int64
    )


def needs_full_logits(params: GenerationParams) -> bool:
    """Whether a list of candidates can never prove a token under these parameters."""
    return _recipe(params).needs_full_logits


def supports(params: GenerationParams) -> str | None:
    """Why these parameters cannot be decoded row by row from logits alone; None if they can.

    The reason completes the sentence "runs through model.generate, because …".
    """
    if params.kind == "assisted":
        return "assisted decoding drafts its own tokens"
    for name, reason in _NOT_BY_ROW.items():
        if name in params:
            return reason
    unknown = sorted(name for name in params if name not in RULES)
    return f"{', '.join(unknown)} is new in this version of transformers" if unknown else None


_NOT_BY_ROW = {
    "guidance_scale": "guidance_scale runs the model a second time without the prompt",
    "watermarking_config": "watermarks keep a state of their own",
    "encoder_repetition_penalty": "encoder_repetition_penalty looks at the encoder's input",
    "encoder_no_repeat_ngram_size": "encoder_no_repeat_ngram_size looks at the encoder's input",
    "token_healing": "token_healing changes the prompt",
    "cache_implementation": "a quantized cache changes the logits",
}


@dataclass(frozen=True, slots=True)
class _Recipe:
    """A configuration, taken apart once."""

    sampled: bool
    rules: tuple[Rule, ...]
    own: LogitsProcessorList
    temperature: float
    top_h: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    epsilon: float
    eta: float
    seed: int
    needs_full_logits: bool
    width: int

    @property
    def is_argmax(self) -> bool:
        """Whether the largest logit is the token."""
        return not self.sampled and not self.rules

    @property
    def has_shape(self) -> bool:
        """Whether something beside thresholds is applied, which needs the exact support."""
        return self.typical_p < 1.0 or self.eta > 0.0


@lru_cache(maxsize=4096)
def _recipe(params: GenerationParams) -> _Recipe:
    def value(name: str, neutral: float) -> float:
        return float(params.get(name, neutral))

    sampled = bool(params.get("do_sample"))
    top_k, top_p = int(params.get("top_k", 0)), value("top_p", 1.0)
    own = own_processors(params)
    has_shape = value("typical_p", 1.0) < 1.0 or value("eta_cutoff", 0.0) > 0.0
    bounded = top_k > 0 or top_p < 1.0 or "top_h" in params or "min_p" in params
    return _Recipe(
        sampled=sampled,
        rules=rules_of(params),
        own=own,
        temperature=value("temperature", 1.0),
        top_h=value("top_h", np.nan),
        top_k=top_k,
        top_p=top_p,
        min_p=value("min_p", 0.0),
        typical_p=value("typical_p", 1.0),
        epsilon=value("epsilon_cutoff", 0.0),
        eta=value("eta_cutoff", 0.0),
        seed=params.generation_seed,
        needs_full_logits=(
            bool(own)
            or params.get("repetition_penalty", 1.0) < 1.0
            or "remove_invalid_values" in params
            or (sampled and has_shape and not bounded)
        ),
        width=top_k + 1 if sampled and bounded else (NARROW if not sampled else NARROW + 1),
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
    rows: Sequence[PickRow],
    recipes: Sequence[_Recipe],
) -> None:
    """Fill in the tokens of these rows as far as their first ``width`` candidates prove them."""
    if not indices:
        return
    chosen = [rows[i] for i in indices]
    prepared = _Prepared(candidates, width, indices, chosen, [recipes[i] for i in indices])
    sampled = [place for place, i in enumerate(indices) if recipes[i].sampled]
    for place, i in enumerate(indices):
        if not recipes[i].sampled:
            tokens[i] = prepared.largest(place)
    if sampled:
        drawn = prepared.draw(sampled, [chosen[place] for place in sampled], [recipes[indices[p]] for p in sampled])
        tokens[[indices[place] for place in sampled]] = drawn


class _Prepared:
    """Some rows' candidates after the rules, with what is known of all other tokens."""

    def __init__(
        self,
        candidates: Candidates,
        width: int,
        indices: list[int],
        rows: Sequence[PickRow],
        recipes: Sequence[_Recipe],
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
        for place, (row, recipe) in enumerate(zip(rows, recipes, strict=True)):
            if recipe.rules:
                places = np.zeros(candidates.vocab_size, dtype=np.int64) if places is None else places
                self._apply(place, row, recipe.rules, places)
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

    def draw(self, places: list[int], rows: Sequence[PickRow], recipes: Sequence[_Recipe]) -> Ints:
        """Sample the rows at these places."""
        temperature = np.array([recipe.temperature for recipe in recipes])
        divisor = temperature.astype(np.float32)
        with np.errstate(over="ignore"):
            scores = self.scores[places] / divisor[:, None]
            bound = (self.bound[places].astype(np.float32) / divisor).astype(np.float64)
        overflown = ~(scores.max(axis=1) < np.inf)
        scores[overflown] = 0.0
        tail = self._tail_at(places, 1.0 / temperature)
        scores, ids = _sorted(scores, self.ids[places])
        drawn = _draw(scores.astype(np.float64), ids, bound, *tail, self.vocab_size, rows, recipes)
        drawn[self.lost[places] | overflown] = UNDECIDED
        return drawn

    def _apply(self, place: int, row: PickRow, rules: Sequence[Rule], places: NDArray[np.int64]) -> None:
        row_scores = RowScores(self.scores[place], self.ids[place], places)
        for rule in rules:
            rule(row_scores, row)
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


def _sorted(scores: NDArray[np.float32], ids: Ints) -> tuple[NDArray[np.float32], Ints]:
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


# ---- drawing --------------------------------------------------------------------------------------------------------


def _draw(
    scores: Floats,
    ids: Ints,
    bound: Floats,
    tail_low: Floats,
    tail_high: Floats,
    vocab_size: int,
    rows: Sequence[PickRow],
    recipes: Sequence[_Recipe],
) -> Ints:
    """Truncate, add the noise, take the largest; -1 where what is outside the list could change that."""
    support = Support(scores, bound, tail_low, tail_high, vocab_size)
    _truncate(support, recipes)
    tokens = np.full(len(rows), UNDECIDED, dtype=np.int64)
    hopeful = np.flatnonzero(support.sure > 0)
    for indices in _of_similar_size(hopeful, support.most):
        width = int(support.most[indices].max())
        noisy = gumbel(
            np.array([recipes[i].seed for i in indices], dtype=np.uint64),
            np.array([rows[i].row_key for i in indices], dtype=np.uint64),
            np.array([rows[i].step for i in indices]),
            ids[indices, :width],
        )
        noisy += scores[indices, :width] - scores[indices, :1]
        for place, i in enumerate(indices.tolist()):
            if recipes[i].has_shape:
                _cut_to_shape(noisy[place], support, i, recipes[i])
        noisy[np.arange(width) >= support.most[indices, None]] = -np.inf
        winners = np.argmax(noisy, axis=1)
        best = noisy[np.arange(len(indices)), winners]
        decided = (winners < support.sure[indices]) & (best > -np.inf)
        for place in np.flatnonzero(decided & support.open[indices]).tolist():
            i = int(indices[place])
            lead = best[place] - (bound[i] - scores[i, 0])
            decided[place] = _beats_the_rest(lead, ids[i], vocab_size, rows[i], recipes[i].seed)
        tokens[indices[decided]] = ids[indices, winners][decided]
    return tokens


def _truncate(support: Support, recipes: Sequence[_Recipe]) -> None:
    """Hugging Face's warpers after temperature, up to those that need the exact support."""
    _where_any(support.top_h, [recipe.top_h for recipe in recipes], np.nan)
    _where_any(support.top_k, [recipe.top_k for recipe in recipes], 0)
    _where_any(support.top_p, [recipe.top_p for recipe in recipes], 1.0)
    _where_any(support.min_p, [recipe.min_p for recipe in recipes], 0.0)
    _where_any(support.epsilon, [0.0 if recipe.has_shape else recipe.epsilon for recipe in recipes], 0.0)


def _where_any(apply: Callable[[Any], None], values: list[Any], neutral: float) -> None:
    if any(value != neutral and value == value for value in values):
        apply(np.array(values))


def _cut_to_shape(noisy: Floats, support: Support, row: int, recipe: _Recipe) -> None:
    """Apply what is not a threshold, or give the row up."""
    if not support.is_exact(row):
        noisy[:] = -np.inf
        return
    size = int(support.most[row])
    kept = kept_by_shape(support.scores[row, :size], recipe.typical_p, recipe.epsilon, recipe.eta)
    noisy[:size][~kept] = -np.inf


def _of_similar_size(indices: Ints, sizes: Ints) -> list[Ints]:
    """Rows in groups, so that one wide row does not make all others draw as much noise."""
    groups = np.searchsorted([64, 256], sizes[indices])
    return [indices[groups == group] for group in np.unique(groups)]


def _beats_the_rest(lead: float, ids: Ints, vocab_size: int, row: PickRow, seed: int) -> bool:
    """Whether no token outside the list has so much noise as the winner leads the largest possible score by."""
    if lead > MAX_GUMBEL:
        return True
    if (vocab_size - len(ids)) * np.exp(-lead) > 3.0:
        return False  # three tokens outside are expected to have that much noise: not worth looking
    bits = noise_bits(seed, [row.row_key], [row.step], np.arange(vocab_size)[None])
    bits[0, ids] = 1
    return bool(gumbel_of_bits(bits.max(keepdims=True))[0, 0] < lead)


# ---- rows of all logits ---------------------------------------------------------------------------------------------


def _pick_one(logits: NDArray[np.float32], row: PickRow, recipe: _Recipe) -> int:
    row_scores = RowScores(logits.astype(np.float32), None, None)
    for rule in recipe.rules:
        rule(row_scores, row)
    scores = row_scores.scores
    if not recipe.sampled:
        return int(np.argmax(scores))
    if recipe.own:
        scores = recipe.own(_NO_CONTEXT, torch.from_numpy(scores)[None])[0].numpy()
    with np.errstate(over="ignore"):
        scores = _without_infinity(scores / np.float32(recipe.temperature))
    for width in (FULL_WIDTH, len(scores)):
        if width <= len(scores):
            token = _draw_from_all(scores, width, row, recipe)
            if token != UNDECIDED:
                return token
    return 0


def _without_infinity(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of which none is nan or +inf (float16 models overflow); +inf outweighs all that is finite."""
    top = scores.max()
    if np.isfinite(top):
        return scores
    return np.where(scores == np.inf, np.float32(0.0), np.where(np.isnan(scores) | (top == np.inf), -np.inf, scores))


def _draw_from_all(scores: NDArray[np.float32], width: int, row: PickRow, recipe: _Recipe) -> int:
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
    ordered, ordered_ids = _sorted(scores[ids][None], ids[None].copy())
    drawn = _draw(ordered.astype(np.float64), ordered_ids, bound, tail, tail, size, [row], [recipe])
    return int(drawn[0])
