"""Makes a completion of a row's tokens: what was thought in it stands apart from the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsearch_optuna.engine.request import Completion, FinishReason

if TYPE_CHECKING:
    from llmsearch_optuna.engine.sampling.reasoning import ReasoningState
    from llmsearch_optuna.engine.sampling.stop import Stopper


def completion_of(
    stopper: Stopper,
    tokens: Sequence[int],
    reason: FinishReason,
    prompt_tokens: int,
    reasoning: ReasoningState | None,
) -> Completion:
    """Return the completion of tokens that have ended.

    Args:
        stopper: Makes text of tokens, cut before a stop.
        tokens: The generated ones, the ending one included.
        reason: Why they ended.
        prompt_tokens: How many tokens the prompt had.
        reasoning: Where these tokens stand in their span; None where none is looked for.
    """
    if reasoning is None or reasoning.start is None or reasoning.began is None:
        return Completion(stopper.text_of(tokens), tuple(tokens), reason, prompt_tokens)
    end = reasoning.ended
    thought = tokens[reasoning.began : None if end is None else end - len(reasoning.span.end_ids)]
    answer = "" if end is None else stopper.text_of(tokens[end:])
    return Completion(
        f"{stopper.text_of(tokens[: reasoning.start])}{answer}".lstrip(),
        tuple(tokens),
        reason,
        prompt_tokens,
        reasoning=stopper.text_of(thought).strip(),
        reasoning_tokens=reasoning.reasoning_tokens,
    )
