"""One part of a task that has several values, of which a study chooses one: what they are, and what they are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmsearch_optuna.engine.sampling.param_specs import TEMPLATE_VARIABLE
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.fingerprint.functions import callable_name

Label: TypeAlias = bool | int | float | str
"""What a value is called: a number or a switch by itself, a text by its name."""

PROMPT, SYSTEM = "prompt", "system"

LABEL_LENGTH = 40
"""Characters of the text that stand in the label of a value without a name."""


@dataclass(frozen=True)
class TaskChoice:
    """One part of a task with several values.

    >>> choice = TaskChoice("prompt", ("short", "long"), ("TL;DR {text}", "Summarize: {text}"))
    >>> choice.label_of("TL;DR {text}"), choice.value_of("long")
    ('short', 'Summarize: {text}')

    Attributes:
        name: Among the parameters of a configuration.
        labels: What the values are called, in the user's order.
        values: What they stand for.
    """

    name: str
    labels: tuple[Label, ...]
    values: tuple[Any, ...]

    def value_of(self, label: object) -> Any:
        """Return what a label stands for.

        Raises:
            InputError: There is no such label; names all.
        """
        for known, value in zip(self.labels, self.values, strict=True):
            if is_same_label(known, label):
                return value
        raise InputError(f"{self.name}={short(label, 60)} is none of {', '.join(map(repr, self.labels))}")

    def label_of(self, given: object) -> Label:
        """Return the label of what a user gave: a label, or a value itself.

        Raises:
            InputError: It is neither.
        """
        for label, value in zip(self.labels, self.values, strict=True):
            if is_same_label(label, given) or (type(value) is type(given) and bool(value == given)):
                return label
        raise InputError(f"{self.name}={short(given, 60)} is none of {', '.join(map(repr, self.labels))}")

    @property
    def description(self) -> list[list[Any]]:
        """``[label, value]`` of each, as JSON has them; a function counts by the prompts that it makes."""
        return [[label, _described(value)] for label, value in zip(self.labels, self.values, strict=True)]


def choice_of(name: str, given: Any) -> TaskChoice | None:
    """Return the choice of several prompts or system messages; None where there is one only.

    Args:
        name: ``"prompt"`` or ``"system"``.
        given: A list, or a mapping of names.

    Raises:
        InputError: It is empty, or two values or names are the same.
    """
    if not given:
        raise InputError(f"{name}={short(given)} is empty; give at least one")
    if isinstance(given, Mapping):
        if wrong := [key for key in given if not isinstance(key, str) or not key.strip()]:
            raise InputError(f"{name}: {short(wrong[0])} is no name; give texts as names, such as 'short'")
        labels, values = tuple(given), tuple(given.values())
    else:
        values = tuple(given)
        labels = tuple(f"{place}. {_words(value)}" for place, value in enumerate(values, start=1))
    if name == SYSTEM:
        values = tuple(map(system_message, values))
    _check_different(name, labels, values)
    return TaskChoice(name, labels, values) if len(values) > 1 else None


def variable_choice(variable: str, values: Sequence[Any]) -> TaskChoice | None:
    """Return the choice of several values of a chat template's variable; None where there is one only.

    Raises:
        InputError: There is none, two are the same, or one cannot be written as JSON.
    """
    name = f"{TEMPLATE_VARIABLE}{variable}"
    if not values:
        raise InputError(f"{name} is an empty list; give at least one value")
    labels = tuple(value if isinstance(value, bool | int | float | str) else _json(name, value) for value in values)
    for place, label in enumerate(labels):
        if label in labels[:place]:
            raise InputError(
                f"{name}: the values {short(values[labels.index(label)])} and {short(values[place])} are the same"
            )
    return TaskChoice(name, labels, tuple(values)) if len(values) > 1 else None


def _check_different(name: str, labels: Sequence[Label], values: Sequence[Any]) -> None:
    for place, value in enumerate(values):
        for before in range(place):
            if type(value) is type(values[before]) and bool(value == values[before]):
                raise InputError(f"{name}: {labels[before]!r} and {labels[place]!r} are the same; leave one out")


def system_message(value: Any) -> str | None:
    """Return one of several system messages; None where it says that there is none.

    Raises:
        InputError: It is no text.
    """
    if value is None or value is False:
        return None
    if not isinstance(value, str):
        raise InputError(f"system: {short(value, 60)} is no text; None (false in a study file) stands for no message")
    return value


def _words(value: Any) -> str:
    """The first words of what has no name."""
    if value is None or value is False:
        return "none"
    if callable(value):
        return callable_name(value, "function")
    if is_list(value):
        value = next((m.get("content") for m in reversed(value) if isinstance(m, Mapping)), value)
    text = " ".join(str(value).split())
    if len(text) <= LABEL_LENGTH:
        return text
    cut = text[:LABEL_LENGTH]
    return f"{cut.rsplit(' ', 1)[0] if ' ' in cut else cut}…"


def _json(name: str, value: Any) -> str:
    if value is None:
        return "none"
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError:
        raise InputError(f"{name}: {short(value, 60)} cannot be written as JSON") from None


def _described(value: Any) -> Any:
    return f"function {callable_name(value, 'without a name')}" if callable(value) else value


def is_same_label(label: object, other: object) -> bool:
    """Whether two labels are the same; a number is no switch."""
    return isinstance(label, bool) == isinstance(other, bool) and bool(label == other)


def is_list(value: Any) -> bool:
    """Whether a user may have given several values with this."""
    return isinstance(value, list | tuple)
