"""What the metric compares with: a column, several columns, or whatever a function makes of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.fingerprint.functions import callable_name
from llmsearch_optuna.metrics.own_copy import own_copy
from llmsearch_optuna.task.dataset import Row, missing_column
from llmsearch_optuna.task.prompts import is_empty


def references_of(reference: Any, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Any]:
    """Yield what the metric compares with, one value a row.

    Args:
        reference: A column, several columns (a dict a row), or a function of the row; None is the column
            ``reference`` where there is one, else no references.
        rows: The rows.
        columns: Their columns.

    Raises:
        InputError: A column is missing or empty in some row, or the function fails.
    """
    if reference is None:
        reference = "reference" if "reference" in columns else None
    if reference is None:
        yield from (None for _ in rows)
    elif callable(reference):
        yield from _called_references(reference, rows)
    else:
        several = isinstance(reference, Sequence) and not isinstance(reference, str)
        names = list(reference) if several else [reference]
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"reference={short(reference)} must be a column, a list of columns, or a function of the row"
            )
        for name in names:
            if name not in columns:
                raise missing_column(name, columns, "reference=")
        _refuse_empty(names, rows)
        yield from ({name: row[name] for name in names} if several else row[names[0]] for row in rows)


def reference_columns(reference: Any) -> tuple[str, ...] | None:
    """Return the columns that references are made of; None where a function may read any."""
    if callable(reference):
        return None
    return ("reference",) if reference is None else (reference,) if isinstance(reference, str) else tuple(reference)


def _refuse_empty(names: Sequence[str], rows: Sequence[Row]) -> None:
    for name in names:
        empty = [number for number, row in enumerate(rows) if is_empty(row.get(name))]
        if empty:
            shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
            raise InputError(f"the reference column {name!r} is empty in row {shown}; leave such rows out")


def _called_references(function: Callable[[Row], Any], rows: Sequence[Row]) -> Iterator[Any]:
    for number, row in enumerate(rows):
        try:
            found = function(own_copy(row))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            name = callable_name(function, "the reference function")
            raise InputError(f"row {number}: {name} fails: {describe_error(problem)}") from problem
        yield found  # outside, or closing the generator would look like an error of the function
