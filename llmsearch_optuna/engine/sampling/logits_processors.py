"""Logits processors change the scores of one row before anything is drawn: penalties, bans, biases, forced tokens.

They are Hugging Face's logits processors on the unpadded row, in its arithmetic (float32), on all scores or on
a list of candidates; for a list they say what they may have done to the tokens that are not on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.dry import Dry, DryPenalty
from llmsearch_optuna.engine.sampling.penalties import PresenceFrequencyPenalty
from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow, RowScores
from llmsearch_optuna.engine.sampling.thinking_budget import ThinkingBudget

LogitsProcessor = Callable[[RowScores, ProcessedRow], None]


def logits_processors_of(params: Mapping[str, Any]) -> tuple[LogitsProcessor, ...]:
    """The processors of a configuration in the order in which ``model.generate`` applies them, then our own."""
    processors: list[LogitsProcessor] = []
    eos = params.get("eos_token_id") or []
    if biases := params.get("sequence_bias"):
        processors.append(_Bias([(tuple(ids), bias) for ids, bias in biases]))
    if penalty := params.get("repetition_penalty"):
        processors.append(RepetitionPenalty(penalty))
    if size := params.get("no_repeat_ngram_size"):
        processors.append(_NoRepeatedNGram(size))
    if sequences := params.get("bad_words_ids"):
        processors.append(_Bias([(tuple(ids), -np.inf) for ids in sequences]))
    if length := params.get("min_length"):
        processors.append(_NoEarlyEnd(eos, length, counts_prompt=True))
    if length := params.get("min_new_tokens"):
        processors.append(_NoEarlyEnd(eos, length, counts_prompt=False))
    forced_bos = params.get("forced_bos_token_id")
    if forced_bos is not None:
        processors.append(_ForcedFirst(forced_bos))
    if forced_eos := params.get("forced_eos_token_id"):
        processors.append(_ForcedLast(forced_eos, params["max_new_tokens"]))
    if params.get("remove_invalid_values"):
        processors.append(_finite)
    if decay := params.get("exponential_decay_length_penalty"):
        processors.append(_Decay(eos, *decay))
    if tokens := params.get("suppress_tokens"):
        processors.append(_Suppress(tokens))
    if tokens := params.get("begin_suppress_tokens"):
        processors.append(_SuppressFirst(tokens, forced_bos is not None))
    presence, frequency = params.get("presence_penalty", 0.0), params.get("frequency_penalty", 0.0)
    if presence or frequency:
        processors.append(PresenceFrequencyPenalty(presence, frequency))
    if (dry := Dry.of(params)) is not None:
        processors.append(DryPenalty(dry))
    if (budget := params.get("thinking_budget")) is not None:
        processors.append(ThinkingBudget(budget))
    return tuple(processors)


class RepetitionPenalty:
    """Lowers the scores of all tokens of the context; a penalty below 1 raises them.

    Args:
        penalty: What positive scores are divided by, and negative ones multiplied by.

    Attributes:
        penalty: The same.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = np.float32(penalty)

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        found, missing = self._seen_places(row_scores, row)
        scores = row_scores.scores[found]
        row_scores.scores[found] = np.where(scores < 0, scores * self.penalty, scores / self.penalty)
        row_scores.lowered += missing
        row_scores.raised |= bool(missing and self.penalty < 1)

    @staticmethod
    def _seen_places(row_scores: RowScores, row: ProcessedRow) -> tuple[NDArray[Any], int]:
        """The places of the seen tokens, and how many of them are not on the list."""
        seen: Collection[int] | None = getattr(row, "seen", None)
        ids = row_scores.ids
        if isinstance(seen, (set, frozenset)) and ids is not None and len(ids) < len(seen):
            here = np.fromiter(map(seen.__contains__, ids.tolist()), dtype=np.bool_, count=len(ids))
            return here, len(seen) - int(np.count_nonzero(here))
        if seen is None:
            tokens = np.unique(np.asarray(row.context, dtype=np.int64))
        elif isinstance(seen, np.ndarray):
            tokens = seen
        else:
            tokens = np.fromiter(seen, dtype=np.int64, count=len(seen))
        found = row_scores.positions(tokens)
        return found, len(tokens) - len(found)


class BanningProcessor:
    """Makes some tokens impossible, whatever the scores are."""

    def banned(self, row: ProcessedRow) -> NDArray[np.int64]:
        """The distinct tokens that the row cannot take now."""
        raise NotImplementedError

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        """Change the scores of one row in place."""
        row_scores.ban(self.banned(row))


_NO_TOKENS = np.empty(0, dtype=np.int64)


class _NoRepeatedNGram(BanningProcessor):
    def __init__(self, size: int) -> None:
        self._size = size

    def banned(self, row: ProcessedRow) -> NDArray[np.int64]:
        length, size = len(row.context), self._size
        if length < size:
            return _NO_TOKENS
        context = np.asarray(row.context, dtype=np.int64)
        windows = length - size + 1
        repeats = np.ones(windows, dtype=bool)
        for offset in range(size - 1):
            repeats &= context[offset : offset + windows] == context[windows + offset]
        return np.unique(context[size - 1 :][repeats])


class _Bias:
    """Adds to the score of the last token of each sequence whose beginning the context ends with."""

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        single = [item for item in biases if len(item[0]) == 1]
        longer: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for ids, bias in biases:
            if len(ids) > 1:
                longer.setdefault(len(ids), []).append((ids, bias))
        self._biases = [*single, *(item for group in longer.values() for item in group)]

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        context, length = row.context, len(row.context)
        sums: dict[int, np.float32] = {}
        for ids, bias in self._biases:
            prefix = len(ids) - 1
            if prefix == 0 or (prefix <= length and tuple(context[length - prefix :]) == ids[:-1]):
                sums[ids[-1]] = sums.get(ids[-1], np.float32(0.0)) + np.float32(bias)
        for token, total in sums.items():
            found = row_scores.positions(np.array([token]))
            row_scores.scores[found] += total
            if not len(found):
                row_scores.lowered += 1
                row_scores.raised |= bool(total > 0)


class _NoEarlyEnd(BanningProcessor):
    def __init__(self, eos: Sequence[int], length: int, *, counts_prompt: bool) -> None:
        self._eos = np.array(eos, dtype=np.int64)
        self._length = length
        self._counts_prompt = counts_prompt

    def banned(self, row: ProcessedRow) -> NDArray[np.int64]:
        length = len(row.context) - (0 if self._counts_prompt else row.prompt_length)
        return self._eos if length < self._length else _NO_TOKENS


class _ForcedFirst:
    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        if len(row.context) == 1:
            row_scores.force([self._token])


class _ForcedLast:
    def __init__(self, tokens: Sequence[int], max_new_tokens: int) -> None:
        self._tokens = list(tokens)
        self._max_new_tokens = max_new_tokens

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        last = len(row.context) - row.prompt_length == self._max_new_tokens - 1
        if last and not row_scores.force(self._tokens):
            row_scores.raised = True


def _finite(row_scores: RowScores, row: ProcessedRow) -> None:
    scores, limits = row_scores.scores, np.finfo(np.float32)
    scores[np.isnan(scores)] = 0.0
    np.clip(scores, limits.min, limits.max, out=scores)
    row_scores.raised = row_scores.ids is not None  # what is not on the list may hold anything


class _Decay:
    """Pulls towards the end ever stronger once ``start`` tokens have been generated."""

    def __init__(self, eos: Sequence[int], start: int, factor: float) -> None:
        self._eos = np.array(eos, dtype=np.int64)
        self._start = start
        self._factor = factor

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        beyond = len(row.context) - row.prompt_length - self._start
        if beyond <= 0:
            return
        found = row_scores.positions(self._eos)
        scores = row_scores.scores[found]
        with np.errstate(invalid="ignore", over="ignore"):
            pull = np.abs(scores) * np.float32(self._factor**beyond - 1)
            row_scores.scores[found] = scores + np.where(np.isfinite(scores), pull, np.float32(0.0))
        row_scores.lowered += len(self._eos) - len(found)
        row_scores.raised |= len(found) < len(self._eos) and self._factor > 1 and not row_scores.forced


class _Suppress(BanningProcessor):
    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.array(tokens, dtype=np.int64)

    def banned(self, row: ProcessedRow) -> NDArray[np.int64]:
        return self._tokens


class _SuppressFirst(BanningProcessor):
    def __init__(self, tokens: Sequence[int], first_is_forced: bool) -> None:
        self._tokens = np.array(tokens, dtype=np.int64)
        self._first_is_forced = first_is_forced

    def banned(self, row: ProcessedRow) -> NDArray[np.int64]:
        one_later = self._first_is_forced and row.prompt_length <= 1
        return self._tokens if len(row.context) == row.prompt_length + one_later else _NO_TOKENS
