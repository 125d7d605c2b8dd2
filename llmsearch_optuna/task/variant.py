"""The prompts that one of several ways to ask makes of a task's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.choices import shown_labels
from llmsearch_optuna.task.content_hash import content_hash
from llmsearch_optuna.task.prepared_task import PreparedTask, earlier_occurrences
from llmsearch_optuna.task.prompts import ReadyPrompt
from llmsearch_optuna.types import Chat


@dataclass(frozen=True)
class Variant:
    """What is asked under one combination of a task's choices.

    Attributes:
        labels: What is chosen.
        prompts: One a row.
        cut_rows: The numbers of the rows whose prompts were shortened.
    """

    labels: Mapping[str, Any]
    prompts: tuple[ReadyPrompt, ...]
    cut_rows: tuple[int, ...]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """What is decoded, or where messages are asked for, what people read of them."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def add_special_tokens(self) -> tuple[bool, ...]:
        """Whether each text is to get special tokens."""
        return tuple(not prompt.from_chat_template for prompt in self.prompts)

    @property
    def chats(self) -> tuple[Chat | None, ...]:
        """The prompts as messages; empty where all are texts."""
        return tuple(prompt.chat for prompt in self.prompts) if any(prompt.chat for prompt in self.prompts) else ()

    @property
    def occurrences(self) -> tuple[int, ...]:
        """How many earlier rows have the same text."""
        return earlier_occurrences(self.texts)

    @cached_property
    def content(self) -> str:
        """The hash of all that is asked."""
        chats = [prompt.chat and [prompt.chat.messages, prompt.chat.template_kwargs] for prompt in self.prompts]
        return content_hash([self.texts, self.add_special_tokens, chats])

    def of(self, prepared: PreparedTask) -> PreparedTask:
        """Return the prepared task as this way asks it."""
        return replace(
            prepared,
            prompts=self.texts,
            add_special_tokens=self.add_special_tokens,
            occurrences=self.occurrences,
            cut_rows=self.cut_rows,
            chats=self.chats,
        )


def check_told_apart(variants: Sequence[Variant]) -> None:
    """Raise InputError where two ways to ask make the same prompts: a chat template that does not read a variable."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        other = seen.setdefault(variant.content, variant)
        if other is not variant:
            raise InputError(
                f"{shown_labels(other.labels)} and {shown_labels(variant.labels)} make the same prompts of all rows: "
                "leave one out (a chat template may not know the variable, or the system message)"
            )
