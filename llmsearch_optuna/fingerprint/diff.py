"""What has changed between two fingerprints, in words; and short hashes of long things.

A fingerprint is a nested dictionary of JSON-able values under names that a user knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SHOWN = 60


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every name whose value differs: ``"metric.name: 'rouge1' -> 'rouge2'"``."""
    before, after = _flat(old), _flat(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            lines.append(f"{name}: {_short(before[name])} -> (gone)")
        elif name not in before:
            lines.append(f"{name}: (new) -> {_short(after[name])}")
        elif before[name] != after[name]:
            lines.append(f"{name}: {_short(before[name])} -> {_short(after[name])}")
    return lines


def digest(value: Any) -> str:
    """A short hash of any JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found.update(_flat(inner, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = inner
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
