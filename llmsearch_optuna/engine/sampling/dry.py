"""DRY ("don't repeat yourself"): the longer a repetition that a token would go on with, the larger its penalty.

Once for a row of the engine, once as an ordinary logits processor.

Source: pi6am's and p-e-w's sampler as llama.cpp has it (``llama_sampler_dry_apply`` in src/llama-sampling.cpp): a token
that would lengthen a repetition of ``n`` tokens loses ``dry_multiplier * dry_base ** (n - dry_allowed_length)`` where
``n`` is at least ``dry_allowed_length``. Repetitions do not reach over a sequence breaker, prompt and generated tokens
count alike. It stands where llama.cpp's default order has it: after the other penalties, before all truncations and
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow, RowScores

DEFAULT_BASE = 1.75
DEFAULT_ALLOWED_LENGTH = 2
DEFAULT_BREAKERS = ("\n", '"', "*", ":")
"""Those of llama.cpp."""

FLOAT_MAX_LOG = 88.7228391
"""The logarithm of the largest float32, as llama.cpp writes it; exponents stay below it."""

LONGEST_BREAKER = 40
LONGEST_TAIL = 20
"""What llama.cpp reads of a breaker: bytes of its text, and tokens behind its first."""

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""First token of a breaker -> the tokens that may follow it there; an empty tuple where the token breaks alone."""


@dataclass(frozen=True, slots=True)
class Dry:
    """One configuration.

    Attributes:
        multiplier, base, allowed_length: As in the formula above.
        last_n: How many tokens of the context are looked at; -1 for all.
    """

    multiplier: float
    base: float = DEFAULT_BASE
    allowed_length: int = DEFAULT_ALLOWED_LENGTH
    last_n: int = -1

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Dry | None:
        """The configuration in these parameters; None where they do not ask for it."""
        if not params.get("dry_multiplier"):
            return None
        return cls(
            params["dry_multiplier"],
            params.get("dry_base", DEFAULT_BASE),
            params.get("dry_allowed_length", DEFAULT_ALLOWED_LENGTH),
            params.get("dry_penalty_last_n", -1),
        )

    def penalties(self, context: Sequence[int] | NDArray[np.int64], breakers: Breakers) -> dict[int, np.float32]:
        """What tokens lose after this context; those that lose nothing are left out.

        After 1 2 3 9 1 2 3 the token 9 would make it four in a row:

        >>> Dry(multiplier=1.0, base=2.0).penalties([1, 2, 3, 9, 1, 2, 3], {})
        {9: np.float32(2.0)}
        """
        tokens = np.asarray(context, dtype=np.int64)
        window = (tokens if self.last_n < 0 else tokens[max(0, len(tokens) - self.last_n) :])[::-1]
        if self.last_n == 0 or len(window) <= self.allowed_length:
            return {}
        limit = since_breaker(window.tolist(), breakers)
        if limit < self.allowed_length:
            return {}
        longest = _longest_repetitions(window, limit, self.allowed_length)
        alone = {token for token in longest if () in breakers.get(token, ())}
        return {token: self._penalty(length) for token, length in longest.items() if token not in alone}

    def _penalty(self, length: int) -> np.float32:
        exponent = length - self.allowed_length
        if self.base > 1.000001:
            exponent = min(exponent, max(1, int(FLOAT_MAX_LOG / math.log(self.base))))
        with np.errstate(over="ignore"):
            return np.float32(self.multiplier * self.base**exponent)


def since_breaker(window: Sequence[int], breakers: Breakers) -> int:
    """How many tokens stand behind the last breaker.

    Args:
        window: The context, last token first.
        breakers: See `breakers_of`.
    """
    if not breakers:
        return len(window)
    for place, token in enumerate(window):
        tails = breakers.get(token, ())
        behind = tuple(window[max(0, place - LONGEST_TAIL) : place][::-1])
        matching = [len(tail) for tail in tails if behind[: len(tail)] == tail]
        if matching:
            return place - max(matching)
    return len(window)


def _longest_repetitions(window: NDArray[np.int64], limit: int, allowed_length: int) -> dict[int, int]:
    """Token -> the longest repetition that it would go on with, at least ``allowed_length`` tokens, at most ``limit``.

    Args:
        window: The context, last token first.
        limit: How many tokens stand behind the last breaker.
        allowed_length: How many tokens may be repeated freely.
    """
    longest: dict[int, int] = {}
    places = np.arange(1, len(window))  # the context up to here may end with what the whole context ends with
    length = 0
    while len(places):
        if length >= allowed_length:
            longest.update(dict.fromkeys(window[places - 1].tolist(), length))
        if length == limit:
            break
        places = places[places + length < len(window)]
        places = places[window[places + length] == window[length]]
        length += 1
    return longest


class DryPenalty:
    """Lowers what would go on with a repetition. A row may carry ``dry_breakers`` (see `breakers_of`)."""

    def __init__(self, dry: Dry) -> None:
        self._dry = dry

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        """Change the scores of one row in place."""
        for token, penalty in self._dry.penalties(row.context, getattr(row, "dry_breakers", {})).items():
            found = row_scores.positions(np.array([token]))
            row_scores.scores[found] -= penalty
            row_scores.lowered += 1 - len(found)


class DryLogitsProcessor(LogitsProcessor):
    """The same for ``model.generate(logits_processor=[...])``, for prompts without filling.

    >>> DryLogitsProcessor(Dry(1.0, base=2.0))(torch.tensor([[1, 2, 3, 0, 1, 2, 3]]), torch.zeros(1, 4))
    tensor([[-2.,  0.,  0.,  0.]])

    Args:
        dry: The configuration.
        breakers: See `breakers_of`.
    """

    def __init__(self, dry: Dry, breakers: Breakers | None = None) -> None:
        self._dry = dry
        self._breakers = {} if breakers is None else breakers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalised scores ``[rows, vocab]``."""
        scores = scores.clone()
        for row, context in enumerate(input_ids.tolist()):
            for token, penalty in self._dry.penalties(context, self._breakers).items():
                scores[row, token] -= float(penalty)
        return scores


def breakers_of(params: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[int, list[tuple[int, ...]]]:
    """The sequence breakers of a configuration in the tokens of a vocabulary; empty where it does not ask for DRY.

    As llama.cpp's ``get_overlapping_token_sequences``: a token whose text has the breaker in it breaks alone; one whose
    text ends with the breaker's beginning breaks together with the tokens of the rest.
    """
    if not params.get("dry_multiplier"):
        return {}
    texts = params.get("dry_sequence_breakers", DEFAULT_BREAKERS)
    cut = [text.encode()[:LONGEST_BREAKER].decode(errors="ignore") for text in texts]
    words = [
        str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for token in range(len(tokenizer))
    ]
    breakers: dict[int, list[tuple[int, ...]]] = {}
    for text in filter(None, cut):
        for token, word in enumerate(words):
            for tail in _tails(word, text, tokenizer):
                if tail not in breakers.setdefault(token, []):
                    breakers[token].append(tail)
    return breakers


def _tails(word: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """What has to follow a token so that the breaker is complete."""
    if text in word:
        return [()]
    starts = (size for size in range(1, len(text)) if word.endswith(text[:size]))
    return [tuple(tokenizer.encode(text[size:], add_special_tokens=False)[:LONGEST_TAIL]) for size in starts]
