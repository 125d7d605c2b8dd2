"""The scores of one row, and what those who change them know of the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class ProcessedRow(Protocol):
    """What processors know of a row.

    A row may also carry ``seen``, the distinct tokens of its context as a set (fastest) or an array that its owner
    keeps up to date; without it the repetition penalty collects them anew at every step. And ``tokens``, an array
    that begins with its context and is kept up to date; without it the device gets a new one. And it may carry
    ``dry_breakers``, the sequence breakers of DRY in its tokenizer's tokens; without them nothing breaks. And
    ``reasoning``, where it stands in the span in which it thinks; without it a budget for that has no effect.
    """

    @property
    def context(self) -> Sequence[int]:
        """Prompt and generated tokens, unpadded (of an encoder-decoder model: the decoder's tokens)."""
        ...

    @property
    def prompt_length(self) -> int:
        """How many tokens of the context were there before the first step."""
        ...


class RowScores:
    """The scores of one row, to be changed in place.

    Attributes:
        scores: ``[tokens]`` float32.
        ids: The token of each score; None where scores are of the whole vocabulary.
        lowered: How many tokens outside the list may have been lowered.
        raised: Whether a token outside the list may have been raised.
        forced: Whether only tokens on the list are still possible.
    """

    __slots__ = ("_places", "forced", "ids", "lowered", "raised", "scores")

    def __init__(self, scores: Floats, ids: Tokens | None, places: NDArray[np.int64] | None) -> None:
        self.scores = scores
        self.ids = ids
        self.lowered = 0
        self.raised = False
        self.forced = False
        self._places = places
        if ids is not None and places is not None:
            places[ids] = np.arange(len(ids))

    def positions(self, tokens: Tokens) -> Tokens:
        """The places of these distinct tokens in the list; those that are not on the list are left out."""
        if self.ids is None or self._places is None:
            return tokens[tokens < len(self.scores)]
        tokens = tokens[tokens < len(self._places)]
        places: Tokens = self._places[tokens]
        here: Tokens = places[self.ids[places] == tokens]  # what other rows have left behind points to other tokens
        return here

    def ban(self, tokens: Tokens) -> None:
        """Make these distinct tokens impossible."""
        found = self.positions(tokens)
        self.scores[found] = -np.inf
        self.lowered += len(tokens) - len(found)

    def force(self, tokens: Sequence[int]) -> bool:
        """Make everything impossible but these tokens, whose score becomes 0; False if the list is too short."""
        if self.ids is None or self._places is None:
            self.scores[:] = -np.inf
            self.scores[list(tokens)] = 0.0
            return True
        if len(tokens) > len(self.scores):
            return False
        self.scores[:] = -np.inf
        self.scores[: len(tokens)] = 0.0
        self.ids[:] = -1
        self.ids[: len(tokens)] = tokens
        self._places[list(tokens)] = np.arange(len(tokens))
        self.forced = True
        return True
