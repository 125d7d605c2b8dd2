"""Which rows are not those any more that a study was started with, for whoever changed a file in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmsearch_optuna.storage.records import Item, as_stored
from llmsearch_optuna.task.prepared_task import PreparedTask

_SHOWN = 8


def changed_rows(stored: Sequence[Item], task: PreparedTask) -> str:
    """Return in words which rows have changed; empty where none has.

    >>> from llmsearch_optuna.task.task import Task
    >>> task = Task([{"prompt": "a", "reference": "b"}], metric="f1").prepare()
    >>> changed_rows([], task)
    'row 0 is new'

    Args:
        stored: The rows of the study.
        task: The same rows as they are now.
    """
    return "; ".join(_told({item.row: item for item in stored}, task))


def _told(stored: dict[int, Item], task: PreparedTask) -> Iterator[str]:
    numbers = range(len(task))
    if gone := sorted(set(stored) - set(numbers)):
        yield f"{_rows(gone)} {_verb(gone)} gone"
    if new := [row for row in numbers if row not in stored]:
        yield f"{_rows(new)} {_verb(new)} new"
    both = [row for row in numbers if row in stored]
    compared: dict[str, Callable[[int], tuple[Any, Any]]] = {
        "another prompt": lambda row: (task.prompts[row], stored[row].prompt),
        "another reference": lambda row: (task.references[row], stored[row].reference),
        "other columns": lambda row: (dict(task.rows[row]), dict(stored[row].columns)),
    }
    for what, now_and_before in compared.items():
        if other := [row for row in both if len(set(map(as_stored, now_and_before(row)))) > 1]:
            yield f"{_rows(other)} {'has' if len(other) == 1 else 'have'} {what}"


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _verb(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"
