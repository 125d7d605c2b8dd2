"""Texts that no tokenizer, database or file takes, found where they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from llmsearch_optuna.errors import InputError, short


def is_encodable(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON's escapes and cut emoji leave behind."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_encodable(value: Any, where: str) -> None:
    """Look through a value of any kind for texts that cannot be encoded.

    Args:
        value: A text, or lists and dicts with texts in them; anything else is left alone.
        where: What it is, such as ``"row 3, column 'text'"``.

    Raises:
        InputError: There is one; says where, and shows what stands around it.
    """
    if isinstance(value, str):
        if not is_encodable(value):
            at = next(place for place, letter in enumerate(value) if "\ud800" <= letter <= "\udfff")
            raise InputError(
                f"{where}: the text holds half a character (a lone surrogate) at place {at}: "
                f"{short(value[max(0, at - 20) : at + 20])}; mend it, such as with "
                "text.encode('utf-8', 'replace').decode()"
            )
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_encodable(name, where)
            check_encodable(inner, where)
    elif isinstance(value, Sequence | AbstractSet) and not isinstance(value, bytes | bytearray | range):
        for inner in value:
            check_encodable(inner, where)


def check_rows_encodable(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError where a column's name or a cell has half a character; names row and column."""
    for number, row in enumerate(rows):
        for name, value in row.items():
            if not isinstance(value, int | float | None):
                check_encodable(value, f"row {number}, column {short(name, 60)}")
            if not name.isascii():
                check_encodable(name, f"row {number}: the name of a column")
