"""Copies for users' functions: what a function does to its arguments must not change the study's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def own_copy(value: Any) -> Any:
    """Return a value whose lists and dicts are new ones, all the way down; anything else in it is shared.

    >>> row = {"tags": ["a"]}
    >>> own_copy(row)["tags"].append("b")
    >>> row
    {'tags': ['a']}
    """
    if type(value) is str:  # most are
        return value
    if isinstance(value, Mapping):
        return {name: own_copy(inner) for name, inner in value.items()}
    return [own_copy(inner) for inner in value] if isinstance(value, list) else value
