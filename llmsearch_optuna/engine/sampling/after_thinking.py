"""Sampling parameters of their own for what follows a thought: ``after_thinking={"temperature": 0.0}``.

A configuration holds them under names such as ``after_thinking.temperature``, so that each can be searched alone. What
they mean beside the other parameters is judged in `params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsearch_optuna.errors import InputError, short

AFTER_THINKING = "after_thinking"
"""The name under which they are given together."""

PREFIX = f"{AFTER_THINKING}."

PENALTIES = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
)
"""What can change behind a thought beside the parameters of sampling."""


def is_after_thinking(name: object) -> bool:
    """Whether this names a parameter of what follows a thought, such as ``after_thinking.temperature``."""
    return isinstance(name, str) and name.startswith(PREFIX)


def plain_name(name: str) -> str:
    """The parameter that such a name stands for: ``temperature`` of ``after_thinking.temperature``."""
    return name.removeprefix(PREFIX)


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with those of ``after_thinking`` under names of their own.

    >>> flattened({"max_new_tokens": 8, "after_thinking": {"temperature": 0.0}})
    {'max_new_tokens': 8, 'after_thinking.temperature': 0.0}

    Raises:
        InputError: ``after_thinking`` is no dict, or a parameter of it is given twice.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{short(values)} is no dict of generation parameters, such as {{'temperature': 0.7}}")
    nested = values.get(AFTER_THINKING)
    found = {name: value for name, value in values.items() if name != AFTER_THINKING}
    if nested is None:
        return found
    if not isinstance(nested, Mapping):
        raise InputError(
            f"{AFTER_THINKING}={short(nested)} must be a dict of sampling parameters; to search one of them give "
            f'"{PREFIX}temperature" a distribution'
        )
    for name, value in nested.items():
        if f"{PREFIX}{name}" in found:
            raise InputError(f"{PREFIX}{name} is given twice; leave it out of {AFTER_THINKING}")
        found[f"{PREFIX}{name}"] = value
    return found
