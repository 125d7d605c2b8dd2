"""A budget for thinking: when a thought has so many tokens, the end marker follows, and the answer goes on.

Once for a row of the engine, once as an ordinary logits processor. It comes after everything else: the tokens of the
marker are not drawn. Like vLLM's ``thinking_token_budget`` it counts the tokens behind the start marker, and 0 closes
the thought at once.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from llmsearch_optuna.engine.sampling.param_specs import check_value
from llmsearch_optuna.engine.sampling.penalties import TextStart
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, ReasoningState
from llmsearch_optuna.engine.sampling.row_scores import ProcessedRow, RowScores


class ThinkingBudget:
    """Leaves a row whose thought is over only the next token of the end marker.

    A row says where it stands in its ``reasoning``; one without is free.

    Args:
        budget: How many tokens may be thought.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def __call__(self, row_scores: RowScores, row: ProcessedRow) -> None:
        """Change the scores of one row in place."""
        state: ReasoningState | None = getattr(row, "reasoning", None)
        token = None if state is None else state.closing(self._budget)
        if token is not None:
            row_scores.force([token])


class ThinkingBudgetLogitsProcessor(LogitsProcessor):
    """The same for ``model.generate(logits_processor=[...])``; give it last.

    It sees for itself where a new text begins.

    >>> span = ReasoningSpan("<think>", "</think>", start_ids=(7,), end_ids=(8,))
    >>> ThinkingBudgetLogitsProcessor(1, span, prompt_length=2)(torch.tensor([[1, 7, 5]]), torch.zeros(1, 9)).argmax()
    tensor(8)

    Args:
        thinking_budget: How many tokens may be thought; from 0.
        reasoning: The markers, with their tokens; see `reasoning_span`.
        prompt_length: Columns of ``input_ids`` before the first generated token; None takes those of the first call.
    """

    def __init__(self, thinking_budget: int, reasoning: ReasoningSpan, prompt_length: int | None = None) -> None:
        self.thinking_budget: int = check_value("thinking_budget", thinking_budget)
        self._span = reasoning
        self._start = TextStart(prompt_length)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]``; rows whose thought is over have one possible token, of score 0."""
        start, changed = self._start.of(input_ids), scores.clone()
        for row, tokens in enumerate(input_ids.tolist()):
            token = self._span.state(tokens[:start], tokens[start:]).closing(self.thinking_budget)
            if token is not None:
                changed[row] = -float("inf")
                changed[row, token] = 0.0
        return changed
