"""What an encoder made of prompts, kept for the plain path: a study asks the same prompts under every configuration."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

Encode = Callable[[Sequence[tuple[int, ...]]], "list[torch.Tensor] | None"]


class Encodings:
    """Encoder states by prompt; where the budget is full, those that were not asked for longest leave.

    Args:
        budget: Bytes that they may take.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(states.nbytes for states in self._kept.values())

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
            found |= zip(missing, made, strict=True)
        for ids in found:
            self._kept[ids] = found[ids]
            self._kept.move_to_end(ids)
        while self._kept and self.nbytes > self._budget:
            self._kept.popitem(last=False)
        return torch.nn.utils.rnn.pad_sequence([found[ids] for ids in asked], batch_first=True)

    def release(self) -> int:
        """Give all of them up; returns how many bytes that were."""
        freed = self.nbytes
        self._kept.clear()
        return freed
