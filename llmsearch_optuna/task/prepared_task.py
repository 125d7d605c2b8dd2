"""A task whose rows have become prompts and references: what a search works on.

Parameters, models and trials must not enter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, reasoning_span
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from llmsearch_optuna.task.choices import TaskChoices, naming
from llmsearch_optuna.task.dataset import Row
from llmsearch_optuna.types import Chat, Direction


@dataclass(frozen=True)
class PreparedTask:
    """A task whose prompts are ready for the model. All sequences have one entry a row.

    Attributes:
        name: For the study's name.
        prompts: Texts to be decoded, chat template applied.
        add_special_tokens: False where the special tokens stand in the text already (no second BOS).
        references: What the metric compares with.
        rows: The rows themselves.
        metric: Tried on the first rows; applies the postprocessing itself.
        direction: ``"maximize"`` or ``"minimize"``.
        occurrences: How many earlier rows have the same prompt.
        distinct: Which distinct prompt the row has, numbered as they first appear.
        cut_rows: The numbers of the rows whose prompts were shortened, by max_prompt_tokens or by the tokenizer.
        encode_args: What the tokenizer is to be called with beside add_special_tokens.
        description: What counts in a study's fingerprint; JSON-able.
        chats: The prompts as messages, where the engine asked for these; None for a prompt that is a text, and empty
            where all are.
        choices: What of the task a configuration chooses; prompts, occurrences, cut rows and chats are those of the
            first of each.
        variants: The same task under each of the combinations of what is chosen, in the order of `choices`.
        reasoning: Between which markers the model thinks; None where all of its text is the answer.
        finds_reasoning: Whether the markers are those of the model, and not the user's own.
        rendering: A digest of what the chat template was given; see `rendering_digest`.
    """

    name: str
    prompts: tuple[str, ...]
    add_special_tokens: tuple[bool, ...]
    references: tuple[Any, ...]
    rows: tuple[Row, ...]
    metric: Metric
    direction: Direction
    occurrences: tuple[int, ...]
    distinct: tuple[int, ...]
    cut_rows: tuple[int, ...]
    encode_args: Mapping[str, Any]
    description: Mapping[str, Any]
    chats: tuple[Chat | None, ...] = ()
    choices: TaskChoices = field(default_factory=TaskChoices)
    variants: tuple[PreparedTask, ...] = ()
    reasoning: ReasoningSpan | None = None
    finds_reasoning: bool = True
    rendering: str = ""

    def under(self, params: Mapping[str, Any]) -> PreparedTask:
        """Return the task as a configuration asks it: the same rows, with the prompts that it chooses.

        Raises:
            InputError: The configuration leaves a choice open, or chooses what cannot be chosen.
        """
        place = self.choices.place(params)
        return self.variants[place] if self.variants else self

    def as_started(self, description: Mapping[str, Any] | None, tokenizer: Any = None) -> PreparedTask:
        """Return the task as a study was started with it, where the user does not say himself where the model thinks.

        A study that read no reasoning goes on without, and one that did goes on with its markers.

        Args:
            description: What the study says of its task; None where there is no such study.
            tokenizer: Makes tokens of the markers; None where there is none.
        """
        if description is None or not self.finds_reasoning:
            return self
        told = description.get("reasoning")
        if told == self.description.get("reasoning"):
            return self
        span = None if told is None else reasoning_span((told["start"], told["end"]), tokenizer)
        kept = {name: value for name, value in self.description.items() if name != "reasoning"}
        return replace(self, reasoning=span, description=kept if told is None else {**kept, "reasoning": told})

    def chat(self, row: int) -> Chat | None:
        """Return a row's prompt as messages, where the engine asked for these."""
        return self.chats[row] if self.chats else None

    def __len__(self) -> int:
        return len(self.prompts)

    def token_counts(self, tokens: PromptTokens) -> tuple[int, ...]:
        """Return how many tokens each prompt has."""
        return tuple(tokens.count(zip(self.prompts, self.add_special_tokens, strict=True), self.encode_args))

    def check_lengths(self, tokens: PromptTokens | None, positions: Positions, max_new_tokens: int) -> None:
        """Make sure that each prompt fits into the model and leaves room for the new tokens.

        Prompts that are so short that they fit in any case are not tokenized.

        Args:
            tokens: Of the model's tokenizer; None is only possible where nothing says how much room there is.
            positions: How many tokens the model has room for.
            max_new_tokens: The most new tokens of any trial.

        Raises:
            InputError: Some prompts do not fit; their row numbers are named.
        """
        for labels, variant in zip(self.choices.combinations(), self.variants, strict=bool(self.variants)):
            with naming(labels):
                variant.check_lengths(tokens, positions, max_new_tokens)
        if self.variants:
            return
        if (problem := positions.problem(1, max_new_tokens)) is not None:
            raise InputError(f"not even a prompt of one token fits: {problem}")
        room = positions.room(max_new_tokens)
        if room is None or tokens is None:
            return
        prompts = list(zip(self.prompts, self.add_special_tokens, strict=True))
        most = (tokens.most(text, add_special_tokens) for text, add_special_tokens in prompts)
        open_numbers = [number for number, upper in enumerate(most) if upper is None or upper > room]
        found = tokens.count((prompts[number] for number in open_numbers), self.encode_args)
        counts = dict(zip(open_numbers, found, strict=True))
        long = [number for number, count in counts.items() if count > room]
        if long:
            shown = ", ".join(f"row {number} ({counts[number]} tokens)" for number in long[:8])
            more = f" and {len(long) - 8} more" if len(long) > 8 else ""
            raise InputError(
                f"{len(long)} of {len(prompts)} prompts do not fit into the model: {shown}{more}. With "
                f"max_new_tokens={max_new_tokens} it has room for {room} tokens of prompt. Leave these rows out"
                f"{'' if positions.shared is None else ', lower max_new_tokens'}, or cut long rows with "
                f"max_prompt_tokens={room}."
            )


def earlier_occurrences(texts: Sequence[str]) -> tuple[int, ...]:
    """Return for each text how many of those before it are the same."""
    seen: Counter[str] = Counter()
    earlier = []
    for text in texts:
        earlier.append(seen[text])
        seen[text] += 1
    return tuple(earlier)
