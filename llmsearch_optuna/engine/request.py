"""What is asked of an engine and what comes back.

A request is one row under one set of parameters. Requests of several trials are decoded together; the tag
says whose they are. Nothing here knows how tokens are made.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan
from llmsearch_optuna.errors import DecodingError, InputError, short
from llmsearch_optuna.types import Chat
from llmsearch_optuna.types import FinishReason as FinishReason

MOST_REPLICATES = 2**20
"""Replicates of a row have numbers below this one."""


def draw_of(replicate: int, sample: int = 0) -> int:
    """Return the number of one sample of a replicate: what keys its noise, and its row in a database.

    The first sample has the replicate's own number, and no number depends on how many samples there are: of eight
    samples the first four are those of four.

    >>> draw_of(3), draw_of(3, 1), replicate_and_sample(draw_of(3, 1))
    (3, 1048579, (3, 1))
    """
    return replicate + sample * MOST_REPLICATES


def replicate_and_sample(draw: int) -> tuple[int, int]:
    """Return which replicate a draw belongs to, and which of its samples it is."""
    sample, replicate = divmod(draw, MOST_REPLICATES)
    return replicate, sample


@dataclass(frozen=True, slots=True)
class Completion:
    """The text that followed one prompt.

    What a thinking model thinks aloud (see `ReasoningSpan`) stands apart in ``reasoning``, and ``text`` is its answer:
    empty where the completion ended while it still thought.

    Attributes:
        text: The decoded new tokens, cut before the stop string, without special tokens.
        token_ids: Every new token, the ending one and those of the reasoning included.
        finish_reason: ``"eos"``, ``"stop"`` (a stop string or stop token sequence) or ``"length"``.
        prompt_tokens: How many tokens the prompt had.
        reasoning: What was thought, without its markers; None where there was no such span.
        reasoning_tokens: How many of the tokens belong to it, generated markers included.
        cumulative_logprob: The sum of the tokens' log-probabilities (natural logarithm) under the model's own logits,
            before any parameter changes them; None where the request did not ask for it.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "eos"
    prompt_tokens: int = 0
    reasoning: str | None = None
    reasoning_tokens: int = 0
    cumulative_logprob: float | None = None

    @property
    def answer_tokens(self) -> int:
        """How many tokens belong to the answer, the ending one included."""
        return len(self.token_ids) - self.reasoning_tokens

    @property
    def mean_logprob(self) -> float | None:
        """The mean log-probability of its tokens under the model; None where it was not asked for."""
        return None if self.cumulative_logprob is None else self.cumulative_logprob / max(1, len(self.token_ids))


@dataclass(frozen=True, slots=True)
class Request:
    """One row to be decoded under one set of parameters.

    Attributes:
        tag: Whose request it is (a trial number, a phase); cancelling works by tag.
        row: The row's place in its task; the pair (tag, row, replicate) names the request.
        prompt: Text that is ready for the model (chat template applied).
        params: How its tokens are picked.
        occurrence: How many earlier rows of the task have the same prompt (keys the noise).
        replicate: Which repetition of the row this is; every one draws fresh noise. Further samples of a replicate are
            repetitions, too (see `draw_of`).
        add_special_tokens: Whether tokenizing adds BOS and the like; None adds them unless the text begins with a
            special token itself, as text from most chat templates does.
        encode_args: What else the tokenizer is called with, such as ``{"truncation": True, "max_length": 512}``.
        chat: The prompt as messages, where the engine asked for them; ``prompt`` is then for people only.
        reasoning: Between which markers the model thinks; None where all of its text is the answer.
        logprobs: Whether the completion is to have its `cumulative_logprob`.
    """

    tag: Hashable
    row: int
    prompt: str
    params: GenerationParams
    occurrence: int = 0
    replicate: int = 0
    add_special_tokens: bool | None = None
    encode_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    chat: Chat | None = field(default=None, hash=False)
    reasoning: ReasoningSpan | None = field(default=None, hash=False)
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that has ended: with a completion, or with the reason why there is none."""

    request: Request
    completion: Completion | None
    error: DecodingError | None = None


def checked_prompts(prompts: Any) -> list[str]:
    """Return prompts as a list of texts that can be decoded.

    Raises:
        InputError: They are one text, no list, or one of them is no text; says which.
    """
    if isinstance(prompts, str | bytes | Mapping | Set) or not isinstance(prompts, Iterable):
        raise InputError(f"prompts={short(prompts)} must be a list of texts, one for each completion")
    try:
        found = list(prompts)
    except TypeError as problem:  # an array without rows
        raise InputError(f"prompts={short(prompts)} must be a list of texts: {problem}") from None
    for row, prompt in enumerate(found):
        if not isinstance(prompt, str):
            raise InputError(f"row {row}: the prompt {short(prompt)} is no text; apply the chat template to messages")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"row {row}: the prompt {short(prompt, 60)} holds half a character (a lone surrogate)"
            ) from None
    return found


def log_finished(logger: logging.Logger, finished: Iterable[Finished]) -> None:
    """At the level DEBUG, say what each row's prompt was and what came of it."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    for item in finished:
        request, completion = item.request, item.completion
        # repr keeps a row on one line, and what a model writes from driving a terminal
        outcome = f"failed: {item.error}"
        if completion is not None:
            outcome = f"{completion.text!r} ({len(completion.token_ids)} tokens, {completion.finish_reason})"
        logger.debug("row %d, replicate %d: %r -> %s", request.row, request.replicate, request.prompt, outcome)
