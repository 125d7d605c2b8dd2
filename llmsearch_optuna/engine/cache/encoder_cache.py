"""What an encoder made of prompts, kept for the plain path: a study asks the same prompts under every configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llmsearch_optuna.engine.cache.lru import LeastRecentlyUsed

Encode = Callable[[Sequence[tuple[int, ...]]], "list[torch.Tensor] | None"]


class EncoderCache:
    """Encoder states by prompt; where the budget is full, those that were not asked for longest leave.

    Args:
        budget: Bytes that they may take.
    """

    def __init__(self, budget: int) -> None:
        self._kept: dict[tuple[int, ...], _EncoderStates] = {}
        self._budgeted: LeastRecentlyUsed[_EncoderStates] = LeastRecentlyUsed(budget)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._budgeted.nbytes

    def of(self, prompts: Sequence[Sequence[int]], encode: Encode) -> torch.Tensor | None:
        """Return the states of these prompts, ``[rows, longest, width]``, filled with zeros on the right.

        Args:
            prompts: Token ids.
            encode: Makes the states ``[length, width]`` of each of some prompts; None where what the encoder makes
                cannot be kept as such, and this returns None then.
        """
        asked = [tuple(prompt) for prompt in prompts]
        found = {ids: self._kept[ids] for ids in asked if ids in self._kept}
        missing = [ids for ids in dict.fromkeys(asked) if ids not in found]
        if missing:
            made = encode(missing)
            if made is None:
                return None
            found |= {ids: _EncoderStates(ids, states, self._kept) for ids, states in zip(missing, made, strict=True)}
        for encoding in found.values():
            self._kept[encoding.ids] = encoding
            self._budgeted.add(encoding)
        return torch.nn.utils.rnn.pad_sequence([found[ids].states for ids in asked], batch_first=True)

    def evict(self) -> int:
        """Give all of them up; returns how many bytes that were."""
        return self._budgeted.shrink(0)


@dataclass(frozen=True, eq=False)
class _EncoderStates:
    """One prompt's states, and where they are found."""

    ids: tuple[int, ...]
    states: torch.Tensor
    kept: dict[tuple[int, ...], _EncoderStates]

    @property
    def nbytes(self) -> int:
        """What the states take."""
        return self.states.nbytes

    def drop(self) -> None:
        """Leave."""
        del self.kept[self.ids]
