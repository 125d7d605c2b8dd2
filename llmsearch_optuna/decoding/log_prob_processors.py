"""Hugging Face's logits processors on some of the tokens of one beam.

Beam search processes log-probabilities, one context at a time, and every processor that is not a sampling warper
changes a token's score by that score and the context alone. So they can run on any part of the vocabulary: on the
best candidates, with a bound for the rest, or on all of it. No model, no torch and no choice of tokens in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MINIMUM = float(np.finfo(np.float32).min)
MAXIMUM = float(np.finfo(np.float32).max)


class LogProbProcessors:
    """The processors of one configuration, bound to one row.

    They run in the order of transformers 5 (``GenerationMixin._get_logits_processor``): sequence bias, repetition
    penalty, n-gram bans, bad words, minimal lengths, forced first and last token, removal of invalid values,
    exponential decay, suppressed tokens.

    Args:
        params: The generation parameters by Hugging Face's names.
        prompt_length: Tokens of the context that were not generated (what ``min_new_tokens`` and others skip).
        max_new_tokens: How long the row may become; the last of these tokens is the one that can be forced.
        eos_token_ids: The ending tokens.
        vocab_size: Number of logits; tokens of the context beyond it are ignored, as Hugging Face does.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        *,
        prompt_length: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        self._prompt_length = prompt_length
        self._final_length = prompt_length + max_new_tokens - 1
        self._vocab_size = vocab_size
        self._seen = np.zeros(vocab_size + 1, dtype=np.bool_)
        self._eos = frozenset(eos_token_ids)
        self._penalty = np.float32(_number(params, "repetition_penalty", 1.0))
        self._ngram_size = int(_number(params, "no_repeat_ngram_size", 0))
        self._bias = _SequenceBias(_bias_items(params.get("sequence_bias")), vocab_size)
        self._bad_words = _SequenceBias(_bad_word_items(params.get("bad_words_ids"), self._eos), vocab_size)
        self._minimal_length = _minimal_length(params, prompt_length) if self._eos else 0
        self._forced_bos = params.get("forced_bos_token_id")
        self._forced_eos = _token_list(params.get("forced_eos_token_id"))
        self._remove_invalid = bool(params.get("remove_invalid_values"))
        start, factor = params.get("exponential_decay_length_penalty") or (math.inf, 1.0)
        self._decay_start, self._decay = start + prompt_length, float(factor)
        self._suppressed = _token_list(params.get("suppress_tokens"))
        self._begin_suppressed = _token_list(params.get("begin_suppress_tokens"))
        delayed = prompt_length <= 1 and self._forced_bos is not None
        self._begin_length = prompt_length + 1 if delayed else prompt_length

    def forced(self, length: int) -> tuple[int, ...] | None:
        """The only tokens that are possible after a context of this length, each with score 0; None if not forced."""
        if self._forced_eos and length == self._final_length:
            return self._forced_eos
        if self._forced_bos is not None and length == 1:
            return (int(self._forced_bos),)
        return None

    def change_anything(self, length: int) -> bool:
        """Whether any score can change after a context of this length."""
        return bool(
            self._penalty != 1.0
            or self._ngram_size
            or self._bias
            or self._bad_words
            or self._suppressed
            or self._remove_invalid
            or length < self._minimal_length
            or length > self._decay_start
            or (self._begin_suppressed and length == self._begin_length)
            or self.forced(length) is not None
        )

    def apply(self, ids: Ints, log_probs: Floats, context: Ints) -> Floats:
        """Return the processed scores ``[K]`` of the tokens ``ids [K]`` after ``context [T]``; no input is changed."""
        length = len(context)
        scores = log_probs.copy()
        self._bias.add(scores, ids, context)
        if self._penalty != 1.0:
            self._penalise(scores, ids, context)
        if 0 < self._ngram_size <= length:
            scores[self._among(ids, _ngram_endings(context, self._ngram_size))] = -np.inf
        self._bad_words.add(scores, ids, context)
        if length < self._minimal_length:
            scores[self._among(ids, self._eos)] = -np.inf
        forced = self.forced(length)
        if forced is not None:
            scores[:] = -np.inf
            scores[self._among(ids, forced)] = 0.0
        if self._remove_invalid:
            np.nan_to_num(scores, copy=False, nan=0.0, posinf=MAXIMUM, neginf=MINIMUM)
        if length > self._decay_start:
            self._favour_the_end(scores, ids, length)
        if self._suppressed:
            scores[self._among(ids, self._suppressed)] = -np.inf
        if self._begin_suppressed and length == self._begin_length:
            scores[self._among(ids, self._begin_suppressed)] = -np.inf
        return scores

    def bound(self, ids: Ints, lowest: float, context: Ints) -> float:
        """An upper bound for the processed scores of all tokens that are not in ``ids``.

        Args:
            ids: The listed tokens ``[K]``.
            lowest: No token outside of the list has a higher log-probability (never above 0).
            context: The tokens before, ``[T]``.

        Returns:
            The bound; infinity where a token that a processor may lift is not in the list.
        """
        length = len(context)
        lifted = self._bias.lifted(context)
        if length > self._decay_start and self._decay != 1.0:
            lifted |= self._eos
        if lifted and not lifted.issubset(ids.tolist()):
            return math.inf
        # Everything else lowers scores, except a penalty below 1, which lifts all log-probabilities alike.
        return lowest * min(1.0, float(self._penalty))

    def _penalise(self, scores: Floats, ids: Ints, context: Ints) -> None:
        repeated = np.flatnonzero(self._among(ids, context))
        old = scores[repeated]
        scores[repeated] = np.where(old < 0, old * self._penalty, old / self._penalty)

    def _favour_the_end(self, scores: Floats, ids: Ints, length: int) -> None:
        ends = np.flatnonzero(self._among(ids, self._eos))
        old = scores[ends]
        lift = np.abs(old) * np.float32(self._decay ** (length - self._decay_start) - 1)
        scores[ends] = old + np.where(np.isfinite(old), lift, np.float32(0.0))

    def _among(self, ids: Ints, tokens: Ints | Iterable[int]) -> NDArray[np.bool_]:
        """Which of ``ids`` are among the tokens, through one reused table: far cheaper than ``np.isin``."""
        found = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, dtype=np.int64)
        found = np.minimum(found, self._vocab_size)
        self._seen[found] = True
        mask = self._seen[ids]
        self._seen[found] = False
        return mask


class _SequenceBias:
    """Biases of token sequences: the bias falls on a sequence's last token when the context ends with the others."""

    def __init__(self, items: Sequence[tuple[tuple[int, ...], float]], vocab_size: int) -> None:
        self._single = np.zeros(vocab_size, dtype=np.float32)
        self._lifted_always: set[int] = set()
        groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for tokens, bias in items:
            if len(tokens) > 1:
                groups.setdefault(len(tokens) - 1, []).append((tokens, bias))
                continue
            self._single[tokens[0]] = bias
            if bias > 0:
                self._lifted_always.add(tokens[0])
        self._groups = [
            (
                np.array([tokens[:-1] for tokens, _ in group], dtype=np.int64),
                np.array([tokens[-1] for tokens, _ in group], dtype=np.int64),
                np.array([bias for _, bias in group], dtype=np.float32),
            )
            for group in groups.values()
        ]
        self._items = len(items)

    def __bool__(self) -> bool:
        return self._items > 0

    def add(self, scores: Floats, ids: Ints, context: Ints) -> None:
        """Add the biases to the scores of ``ids``, in place."""
        if not self:
            return
        bias = self._single[ids]
        for token, value in self._completed(context):
            bias[ids == token] += value
        scores += bias

    def lifted(self, context: Ints) -> set[int]:
        """The tokens that get a positive bias after this context."""
        if not self:
            return set()
        return self._lifted_always | {token for token, value in self._completed(context) if value > 0}

    def _completed(self, context: Ints) -> list[tuple[int, np.float32]]:
        found: list[tuple[int, np.float32]] = []
        for prefixes, endings, biases in self._groups:
            width = prefixes.shape[1]
            if width <= len(context):
                matching = np.flatnonzero((prefixes == context[-width:]).all(axis=1))
                found.extend((int(endings[match]), biases[match]) for match in matching)
        return found


def _ngram_endings(context: Ints, size: int) -> Ints:
    """The tokens that would repeat an n-gram of the context; every token of it for n = 1."""
    windows = len(context) - size + 1
    matching = np.ones(windows, dtype=np.bool_)
    for offset in range(size - 1):
        matching &= context[offset : offset + windows] == context[len(context) - size + 1 + offset]
    return context[size - 1 :][matching]


def _minimal_length(params: Mapping[str, Any], prompt_length: int) -> int:
    """The length of context up to which no ending token is allowed; `min_new_tokens` takes precedence."""
    if params.get("min_new_tokens") is not None:
        return prompt_length + int(params["min_new_tokens"])
    return int(_number(params, "min_length", 0))


def _bias_items(value: Any) -> list[tuple[tuple[int, ...], float]]:
    if not value:
        return []
    pairs = value.items() if isinstance(value, Mapping) else value
    return list({tuple(map(int, tokens)): float(bias) for tokens, bias in pairs}.items())


def _bad_word_items(value: Any, eos: frozenset[int]) -> list[tuple[tuple[int, ...], float]]:
    """Hugging Face drops bad words that are one ending token."""
    words = dict.fromkeys(tuple(map(int, word)) for word in value or ())
    return [(word, -math.inf) for word in words if not (len(word) == 1 and word[0] in eos)]


def _token_list(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(map(int, value))


def _number(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name)
    return default if value is None else float(value)
