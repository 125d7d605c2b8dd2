"""Presence and frequency penalties: less of what has been said already, as OpenAI's interface and vLLM define them.

Only generated tokens count, never the prompt's. Once for a row of the engine, once as an ordinary logits processor.

Source: ``apply_penalties`` in vLLM (vllm/model_executor/layers/utils.py): after the repetition penalty, first
``logits -= frequency_penalty * count``, then ``logits -= presence_penalty`` where the count is above 0. As there they
come before temperature and truncation, and after bans and biases. (llama.cpp counts the prompt's tokens too, within its
``repeat_last_n``; that definition is not here.)
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LogitsProcessor

from llmsearch_optuna.engine.sampling.param_specs import check_value
from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow, RowScores


class PresenceFrequencyPenalty:
    """Lowers the scores of a row's generated tokens, in float32; a negative penalty raises them.

    Args:
        presence: Taken once from every token that was generated.
        frequency: Taken for each time that it was.

    Attributes:
        presence, frequency: The same.
    """

    def __init__(self, presence: float, frequency: float) -> None:
        self.presence = np.float32(presence)
        self.frequency = np.float32(frequency)

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        """Change the scores of one row in place."""
        generated = np.asarray(row.context[row.prompt_length :], dtype=np.int64)
        if not len(generated):
            return
        tokens, counts = np.unique(generated, return_counts=True)
        counted = np.zeros(int(tokens[-1]) + 1, dtype=np.float32)
        counted[tokens] = counts
        found = row_scores.positions(tokens)
        listed = found if row_scores.ids is None else row_scores.ids[found]
        row_scores.scores[found] -= self.frequency * counted[listed]
        row_scores.scores[found] -= self.presence
        if len(found) == len(tokens):
            return
        missing = np.setdiff1d(tokens, listed, assume_unique=True)
        change = self.frequency * counted[missing] + self.presence
        row_scores.lowered += int(np.count_nonzero(change > 0))
        row_scores.raised |= bool((change < 0).any()) and not row_scores.forced


class PresenceFrequencyLogitsProcessor(LogitsProcessor):
    """The same for ``model.generate(logits_processor=[...])``; what a row begins with is its prompt.

    It sees for itself where a new text begins. Token 7 was generated twice and token 8 once:

    >>> penalty = PresenceFrequencyLogitsProcessor(presence_penalty=1.0, frequency_penalty=0.5, prompt_length=2)
    >>> penalty(torch.tensor([[1, 2, 7, 7, 8]]), torch.zeros(1, 9))[0, 7:].tolist()
    [-2.0, -1.5]

    Args:
        presence_penalty: From -2 to 2; 0 is off.
        frequency_penalty: From -2 to 2; 0 is off.
        prompt_length: Columns of ``input_ids`` before the first generated token; None takes those of the first call.
    """

    def __init__(
        self, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, prompt_length: int | None = None
    ) -> None:
        self.presence_penalty: float = check_value("presence_penalty", presence_penalty)
        self.frequency_penalty: float = check_value("frequency_penalty", frequency_penalty)
        self._start = TextStart(prompt_length)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalised scores ``[rows, vocab]``."""
        generated = input_ids[:, self._start.of(input_ids) :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        lowered = scores - self.frequency_penalty * counts
        return torch.where(counts > 0, lowered - self.presence_penalty, lowered)


class TextStart:
    """How many columns of ``input_ids`` are prompts, where nobody says so: those of the first call of a text.

    A call goes on with a text where each row is one of the call before and a token more; beams may change places.

    Args:
        prompt_length: The answer, where it is known.
    """

    def __init__(self, prompt_length: int | None = None) -> None:
        self._known = prompt_length
        self._before = torch.empty((0, 0), dtype=torch.int64)
        self._start = 0

    def of(self, input_ids: torch.Tensor) -> int:
        """Return the length of the prompts; to be asked once in every step."""
        if self._known is not None:
            return self._known
        if not self._goes_on(input_ids):
            self._start = int(input_ids.shape[1])
        self._before = input_ids.clone()
        return self._start

    def _goes_on(self, input_ids: torch.Tensor) -> bool:
        before = self._before.to(input_ids.device)
        if before.shape[1] != input_ids.shape[1] - 1 or len(before) != len(input_ids):
            return False
        return bool((input_ids[:, None, :-1] == before[None]).all(dim=-1).any(dim=1).all())
