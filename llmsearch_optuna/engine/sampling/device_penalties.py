"""Penalties for what was said before, and tokens that are banned for a step, for many rows at once where scores are.

What they do is what `logits_processors` and `penalties` do to one row on the host, in the same float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.logits_processors import BanningProcessor, RepetitionPenalty
from llmsearch_optuna.engine.sampling.penalties import PresenceFrequencyPenalty
from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow
from llmsearch_optuna.engine.sampling.settings import SamplingSettings

NOTHING = 2**31 - 1
"""Stands behind a row's tokens where others have more; no token has this number."""


def can_process(settings: SamplingSettings) -> bool:
    """Whether everything that changes the scores under these settings is done here; nothing here raises a score."""
    return all(
        isinstance(processor, BanningProcessor)
        or (isinstance(processor, RepetitionPenalty) and processor.penalty >= 1)
        or (isinstance(processor, PresenceFrequencyPenalty) and processor.presence >= 0 and processor.frequency >= 0)
        for processor in settings.processors
    )


@dataclass(frozen=True, slots=True)
class DevicePenalties:
    """The penalties of some rows, on the device.

    Attributes:
        repetition, presence, frequency: ``[rows, 1]`` float32; 1, 0 and 0 where they are off.
        context: ``[rows, longest]`` int32, each row's tokens in ascending order; None where no row has a repetition
            penalty.
        generated: The same of the tokens that were generated; None where no row has one of the other penalties.
        banned: The same of the tokens that are impossible; None where there are none.
    """

    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    context: torch.Tensor | None
    generated: torch.Tensor | None
    banned: torch.Tensor | None

    @classmethod
    def of(
        cls, rows: Sequence[ProcessedRow], settings: Sequence[SamplingSettings], device: torch.device
    ) -> DevicePenalties | None:
        """Gather them from the rows; None where nothing changes any score."""
        if not any(row_settings.processors for row_settings in settings):
            return None
        numbers = np.tile(np.array([1.0, 0.0, 0.0], dtype=np.float32), (len(rows), 1))
        context, generated, banned = (_nobody(len(rows)) for _ in range(3))
        for place, (row, row_settings) in enumerate(zip(rows, settings, strict=True)):
            for processor in row_settings.processors:
                if isinstance(processor, RepetitionPenalty):
                    numbers[place, 0] = processor.penalty
                    context[place] = _tokens_of(row)
                elif isinstance(processor, PresenceFrequencyPenalty):
                    numbers[place, 1:] = processor.presence, processor.frequency
                    generated[place] = _tokens_of(row)[row.prompt_length :]
                elif isinstance(processor, BanningProcessor):
                    banned[place] = np.concatenate((banned[place], processor.banned(row)))
        columns = torch.from_numpy(numbers).to(device)[:, :, None].unbind(1)
        return cls(*columns, *(_sorted(tokens, device) for tokens in (context, generated, banned)))

    def take(self, places: torch.Tensor) -> DevicePenalties:
        """Those of some of the rows."""
        all_rows = {name: getattr(self, name) for name in self.__slots__}
        some: dict[str, Any] = {name: None if value is None else value[places] for name, value in all_rows.items()}
        return replace(self, **some)

    def apply(self, scores: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Change the scores of some tokens of each row.

        Args:
            scores: ``[rows, tokens]`` float32.
            ids: ``[rows, tokens]``, distinct in each row.

        Returns:
            The scores ``[rows, tokens]``, and how many other tokens may have been lowered, ``[rows]``.
        """
        lowered = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if self.context is not None:
            seen = _counts(self.context, ids) > 0
            penalised = torch.where(scores < 0, scores * self.repetition, scores / self.repetition)
            scores = torch.where(seen, penalised, scores)
            lowered += _distinct(self.context) - seen.sum(dim=1)
        if self.generated is not None:
            counts = _counts(self.generated, ids)
            reduced = scores - self.frequency * counts.float()
            scores = torch.where(counts > 0, reduced - self.presence, scores)
            lowered += _distinct(self.generated) - (counts > 0).sum(dim=1)
        if self.banned is not None:
            impossible = _counts(self.banned, ids) > 0
            scores = torch.where(impossible, -torch.inf, scores)
            lowered += _distinct(self.banned) - impossible.sum(dim=1)
        return scores, lowered


def _nobody(rows: int) -> list[NDArray[Any]]:
    return [np.empty(0, dtype=np.int64)] * rows


def _tokens_of(row: ProcessedRow) -> NDArray[Any]:
    """A row's context; an array that its owner keeps up to date is not made anew."""
    tokens: NDArray[Any] | None = getattr(row, "tokens", None)
    return np.asarray(row.context) if tokens is None else tokens[: len(row.context)]


def _sorted(rows: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor | None:
    longest = max(map(len, rows))
    if not longest:
        return None
    padded = np.full((len(rows), longest), NOTHING, dtype=np.int32)
    for place, tokens in enumerate(rows):
        padded[place, : len(tokens)] = tokens
    return torch.from_numpy(padded).to(device).sort(dim=1).values


def _counts(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How often each id is among the (sorted) tokens of its row, ``[rows, ids]``."""
    wanted = ids.int().contiguous()
    after = torch.searchsorted(tokens, wanted, right=True)
    return after - torch.searchsorted(tokens, wanted)


def _distinct(tokens: torch.Tensor) -> torch.Tensor:
    """How many different tokens each (sorted) row has, ``[rows]``."""
    is_new = tokens[:, 1:] != tokens[:, :-1]
    return (is_new & (tokens[:, 1:] != NOTHING)).sum(dim=1) + (tokens[:, 0] != NOTHING)
