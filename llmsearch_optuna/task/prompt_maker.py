"""Makes the prompts of all rows under one way to ask: chat template, cutting, and what to warn of.

What a single prompt is stands in `prompts`, how one is cut in `prompt_length`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.tokenization import PromptTokens, check_encode_args
from llmsearch_optuna.task.dataset import Row
from llmsearch_optuna.task.prompt_length import TokenCounter, cut_to_fit, limit_in_tokens
from llmsearch_optuna.task.prompts import ChatMarkers, Content, Prompter, ReadyPrompt, as_messages, chat_markers, ready
from llmsearch_optuna.task.rendering import rendering_digest
from llmsearch_optuna.task.text_checks import check_encodable

_log = logging.getLogger("llmsearch_optuna.task.prompt_maker")


@dataclass(frozen=True, kw_only=True)
class PromptMaker:
    """Makes prompts of rows.

    Attributes:
        prompter: What is asked of a row.
        system: A system message before it.
        chat_template: See `Task`.
        max_prompt_tokens: See `Task`.
        encode_args: What the tokenizer is called with.
        tokenizer: Whose chat template wraps, and whose tokens count; None where an engine takes plain text.
        takes_messages: Whether the engine applies its model's chat template itself. A tokenizer takes precedence.
        tokens: Of this tokenizer, where prompts are to be tokenized by others as well.
    """

    prompter: Prompter
    system: str | None
    chat_template: bool | Mapping[str, Any] | None
    max_prompt_tokens: float | None
    encode_args: Mapping[str, Any]
    tokenizer: Any
    takes_messages: bool = False
    tokens: PromptTokens | None = None

    def contents(self, rows: Sequence[Row]) -> list[Content]:
        """Return what is asked of each row, before the chat template.

        Raises:
            InputError: A prompt cannot be made; the message says of which row.
        """
        made = []
        for number, row in enumerate(rows):
            with _naming_row(number):
                made.append(self.prompter.content(row, self.tokenizer))
        return made

    def rendering(self, contents: Sequence[Content]) -> str:
        """Return what says whether prompts that were rendered before are still the ones; see `rendering_digest`.

        It is empty where prompts may be cut: those that are stored are cut already.
        """
        if self.max_prompt_tokens is not None:
            return ""
        return rendering_digest(contents, self.tokenizer, system=self.system, chat_template=self.chat_template)

    def prompts(
        self, rows: Sequence[Row], contents: Sequence[Content], rendered: Sequence[str] | None = None
    ) -> tuple[list[ReadyPrompt], tuple[int, ...]]:
        """Return the ready prompts and the numbers of the rows that had to be cut for them.

        Args:
            rows: The rows.
            contents: What is asked of each.
            rendered: What the chat template makes of each, where that is known.

        Raises:
            InputError: A prompt cannot be made; the message says of which row.
        """
        if self.tokenizer is None and self.max_prompt_tokens is not None:
            raise InputError("max_prompt_tokens counts tokens, and there is no tokenizer; give tokenizer=")
        if self.tokenizer is None and self.encode_args:
            raise InputError("tokenizer_encode_args are for a tokenizer, and there is none; give tokenizer=")
        prompts = []
        for number, content in enumerate(contents):
            with _naming_row(number):
                prompts.append(self._prompt(content, None if rendered is None else rendered[number]))
        _warn_of_chat_format(prompts)
        if self.tokenizer is None:
            return prompts, ()
        cut = self._cut(prompts, rows)
        return prompts, tuple(sorted(cut | self._truncated(prompts)))

    @cached_property
    def counter(self) -> TokenCounter:
        """Counts tokens of prompts; there must be a tokenizer."""
        return TokenCounter(self.tokens or PromptTokens(self.tokenizer), check_encode_args(self.encode_args))

    @cached_property
    def _markers(self) -> ChatMarkers | None:
        return chat_markers(self.tokenizer)

    def _prompt(self, content: Content, rendered: str | None = None) -> ReadyPrompt:
        system, template = self.system, self.chat_template
        if self.takes_messages and self.tokenizer is None:
            made = as_messages(content, system=system, chat_template=template)
        else:
            made = ready(
                content,
                self.tokenizer,
                system=system,
                chat_template=template,
                markers=self._markers,
                rendered=rendered,
            )
        if not made.text:
            raise InputError("its prompt is an empty text")
        check_encodable(made.text, "its prompt")
        return made

    def _cut(self, prompts: list[ReadyPrompt], rows: Sequence[Row]) -> set[int]:
        """Shorten what is longer than max_prompt_tokens, in place; returns the numbers of these rows."""
        if self.max_prompt_tokens is None:
            return set()
        counts = self.counter.of_all(prompts)
        limit = limit_in_tokens(self.max_prompt_tokens, counts)
        cut = {number for number, tokens in enumerate(counts) if tokens > limit}
        for number in sorted(cut):
            with _naming_row(number):
                prompts[number] = cut_to_fit(
                    rows[number],
                    limit,
                    make=lambda row: self._prompt(self.prompter.content(row, self.tokenizer)),
                    count=self.counter.of,
                )
        if cut:
            _log.warning(
                "max_prompt_tokens=%s cut %d of %d rows to %d tokens",
                self.max_prompt_tokens,
                len(cut),
                len(rows),
                limit,
            )
        return cut

    def _truncated(self, prompts: Sequence[ReadyPrompt]) -> set[int]:
        """The numbers of the rows whose prompts lose tokens by the user's own arguments for the tokenizer."""
        if not self.counter.truncates:
            return set()
        kept, whole = self.counter.of_all(prompts), self.counter.whole().of_all(prompts)
        lost = {number for number, (tokens, of_all) in enumerate(zip(kept, whole, strict=True)) if tokens < of_all}
        if lost:
            _log.warning(
                "tokenizer_encode_args cut %d of %d prompts on the %s, whatever stood there; max_prompt_tokens= cuts "
                "only the longest column",
                len(lost),
                len(prompts),
                self.tokenizer.truncation_side,
            )
        return lost


def _warn_of_chat_format(prompts: Sequence[ReadyPrompt]) -> None:
    """Say where prompts hold what the chat template itself writes."""
    wrapped_before = [n for n, prompt in enumerate(prompts) if prompt.was_in_chat_format]
    if wrapped_before:
        _log.warning(
            "%s in the chat's format already, and not wrapped in the chat template once more; chat_template=True "
            "wraps them, chat_template=False says that none is to be wrapped",
            _some_prompts(wrapped_before, len(prompts), "is", "are"),
        )
    holding = [n for n, prompt in enumerate(prompts) if prompt.holds_special_tokens]
    if holding:
        _log.warning(
            "%s special tokens of the chat template in the text that it wraps, which the model takes for the "
            "chat's own; clean the columns, or say chat_template=False where prompts are ready",
            _some_prompts(holding, len(prompts), "has", "have"),
        )


def _some_prompts(numbers: Sequence[int], total: int, one: str, several: str) -> str:
    """``3 of 9 prompts (row 0, 4, 5) are``."""
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"{len(numbers)} of {total} prompts (row {shown}) {one if len(numbers) == 1 else several}"


@contextmanager
def _naming_row(number: int) -> Iterator[None]:
    try:
        yield
    except InputError as problem:
        raise InputError(f"row {number}: {problem}") from problem.__cause__
