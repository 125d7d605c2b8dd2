"""What identifies a task's prompts, references and columns in a study's fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from llmsearch_optuna.fingerprint.json_text import json_text
from llmsearch_optuna.metrics.references import plain_reference


def content_hash(values: Sequence[Any]) -> str:
    """Return the SHA-256 of values as JSON; what JSON does not know counts by its text, without addresses."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json_text(value, sort_keys=True, default=_textual).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _textual(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return plain_reference(value)  # their own order differs from process to process
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
