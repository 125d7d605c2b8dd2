"""A task of another evaluation library as data: ``"lm_eval:gsm8k"``, ``"inspect:file.py@task"``.

The library makes documents, prompts and references, and scores answers; a file for each library reads them. What all of
them come to is declared here, and neither library is loaded before one of its tasks is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, cast

from llmsearch_optuna.engine.sampling.param_specs import check_value
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.task.dataset import Row
from llmsearch_optuna.types import Direction

LIBRARIES: Mapping[str, str] = MappingProxyType(
    {"lm_eval": "llmsearch_optuna.task.lm_eval_task", "inspect": "llmsearch_optuna.task.inspect_task"}
)
"""How an address begins -> the module that reads such tasks."""


@dataclass(frozen=True)
class LibraryTask:
    """What a library says of one of its tasks.

    Attributes:
        name: For the study's name.
        rows: One a document, with the columns ``doc``, ``prompt`` (a text, or chat messages) and ``reference``.
        metric: The library's own, by row.
        direction: Whether a higher score is better.
        generation: Generation parameters that the task is decoded with: stop strings, the most new tokens.
        wraps: Whether prompts are messages for the model's chat template.
    """

    name: str
    rows: tuple[Row, ...]
    metric: Metric
    direction: Direction
    generation: Mapping[str, Any] = field(default_factory=dict)
    wraps: bool = False


class Reader(Protocol):
    """A module that reads the tasks of one library."""

    def read_task(self, address: str, *, limit: int | None, system: str | None, wraps: bool | None) -> LibraryTask:
        """Return a task.

        Args:
            address: What follows ``"lm_eval:"`` and the like.
            limit: Only so many documents.
            system: A system message before what the task itself says.
            wraps: Whether prompts are to be messages for the model's chat template; None is the library's default.

        Raises:
            InputError: There is no such task, or it cannot be decoded and scored row by row.
        """
        ...


def is_library_task(dataset: Any) -> bool:
    """Tell whether this is the address of a library's task."""
    return isinstance(dataset, str) and dataset.partition(":")[0] in LIBRARIES and ":" in dataset


def read_library_task(
    address: str, *, limit: int | None = None, system: str | None = None, wraps: bool | None = None
) -> LibraryTask:
    """Return the task at an address such as ``"lm_eval:gsm8k"``; see `Reader.read_task`."""
    library, _, rest = address.partition(":")
    if not rest.strip():
        raise InputError(f"{address!r} names no task; give one, such as 'lm_eval:gsm8k' or 'inspect:file.py@task'")
    reader = cast(Reader, importlib.import_module(LIBRARIES[library]))
    return reader.read_task(rest.strip(), limit=limit, system=system, wraps=wraps)


def checked_generation(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a task's generation parameters, each of which is known here.

    Raises:
        InputError: One is not, or has no such value; names the task.
    """
    try:
        return {name: check_value(name, value) for name, value in values.items()}
    except InputError as problem:
        raise InputError(f"{where} is decoded with what is not possible here: {problem}") from None
