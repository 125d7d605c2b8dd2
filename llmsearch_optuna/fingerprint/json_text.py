"""Values as JSON, whatever their dicts are keyed by."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any


def json_text(value: Any, *, default: Callable[[Any], Any], sort_keys: bool = False) -> str:
    """Return a value as JSON in which letters stand as they are.

    Args:
        value: Anything.
        default: Makes a JSON value of what JSON does not know.
        sort_keys: Whether the order of a dict does not count.
    """
    try:
        return _encoder(default, sort_keys).encode(value)
    except TypeError:  # keys that JSON does not know, or that have no order among themselves
        return json.dumps(_with_text_keys(value, default), sort_keys=sort_keys, ensure_ascii=False)


@functools.lru_cache(maxsize=16)
def _encoder(default: Callable[[Any], Any], sort_keys: bool) -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=sort_keys, default=default, ensure_ascii=False)


def _with_text_keys(value: Any, default: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {_key(name): _with_text_keys(inner, default) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_keys(inner, default) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _with_text_keys(default(value), default)


def _key(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
