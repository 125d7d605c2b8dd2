"""People's scores of answers, from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.judged import Label
from llmsearch_optuna.task.dataset import read_table


def read_labels(path: str | Path) -> list[Label]:
    """Return the labels of a file with the columns ``answer``, ``score`` and, where it matters, ``row``.

    Raises:
        InputError: The file cannot be read, or a line lacks an answer or a score, or has another kind of them.
    """
    found: list[Label] = []
    for number, line in enumerate(read_table(str(path)).rows):
        where = f"labels={short(str(path))}: line {number + 1}"
        if missing := [name for name in ("answer", "score") if line.get(name) is None]:
            raise InputError(f"{where} has no {' and no '.join(missing)}")
        score, row = _read(line["score"], float, f"{where}: score"), line.get("row")
        answer = str(line["answer"])
        found.append((answer if row is None else (_read(row, int, f"{where}: row"), answer), score))
    return found


def _read(value: Any, kind: Callable[[str], Any], what: str) -> Any:
    """A number, also where the file has it as text, as CSV files do."""
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{what} {short(value)} is no number") from None
