"""What users' engines answer: completions, or what is wrong with an answer."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from itertools import islice
from typing import Any, cast, get_args

from llmsearch_optuna.engine.request import Completion, FinishReason, Request
from llmsearch_optuna.errors import DecodingError, short

MOST_TOKENS = 10_000_000
"""Of a completion; token_ids may be a generator, and have no end."""


def checked_completion(given: Any) -> Completion:
    """Return what an engine gave for one prompt as a completion.

    Raises:
        DecodingError: It is neither a text nor a `Completion`, or one of its parts is of another kind than it must be.
    """
    if isinstance(given, str):
        return Completion(str(given))
    text = getattr(given, "text", None)
    if not isinstance(text, str):
        what = f"a completion whose text is {short(text)}" if hasattr(given, "text") else f"{short(given)}"
        raise DecodingError(f"the engine returned {what} for a prompt; it must return a text or a Completion for each")
    reason = getattr(given, "finish_reason", None) or "eos"
    if reason not in get_args(FinishReason):
        raise DecodingError(f"the engine returned finish_reason={short(reason)}; it must be 'eos', 'stop' or 'length'")
    ids, prompt_tokens = _token_ids(given), _count(getattr(given, "prompt_tokens", 0), "prompt_tokens")
    reasoning = getattr(given, "reasoning", None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise DecodingError(f"the engine returned reasoning={short(reasoning)}; it must be a text or None")
    thought = min(_count(getattr(given, "reasoning_tokens", 0), "reasoning_tokens"), len(ids))
    logprob = _logprob(getattr(given, "cumulative_logprob", None))
    return Completion(text, ids, cast(FinishReason, reason), prompt_tokens, reasoning, thought, logprob)


def answer_apart(completion: Completion, request: Request) -> Completion:
    """Return a completion with its reasoning apart, where whatever decoded it has left both in one text.

    How many tokens were thought is known where the tokens are, or where the thought never ended; else it is 0.
    """
    span = request.reasoning
    if span is None or span.closed_by_text(request.prompt):
        return completion
    if completion.reasoning is None:
        answer, reasoning = span.split_text(completion.text, opened=span.opened_by_text(request.prompt))
        if reasoning is None:
            return completion
        completion = replace(completion, text=answer, reasoning=reasoning)
    if completion.reasoning_tokens:
        return completion
    thought = span.tokens_of(completion.token_ids)
    if thought is None:
        thought = 0 if completion.text else len(completion.token_ids)
    return replace(completion, reasoning_tokens=thought)


def _token_ids(given: Any) -> tuple[int, ...]:
    ids = getattr(given, "token_ids", ())
    try:
        found = tuple(operator.index(token) for token in islice(() if ids is None else ids, MOST_TOKENS + 1))
    except TypeError:
        raise DecodingError(f"the engine returned token_ids={short(ids)}; they must be whole numbers") from None
    if len(found) > MOST_TOKENS:
        raise DecodingError(f"the engine returned more than {MOST_TOKENS:,} token_ids for a prompt")
    if any(not 0 <= token < 1 << 32 for token in found):
        raise DecodingError(f"the engine returned token_ids={short(ids)}; a token's number is from 0 on")
    return found


def _logprob(given: Any) -> float | None:
    if given is None:
        return None
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DecodingError(
            f"the engine returned cumulative_logprob={short(given)}; it must be a finite number or None"
        )
    return found


def _count(given: Any, name: str) -> int:
    try:
        return min(max(operator.index(given), 0), (1 << 31) - 1)
    except TypeError:
        raise DecodingError(f"the engine returned {name}={short(given)}; it must be a whole number") from None
