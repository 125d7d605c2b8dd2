"""Puts other values in the place of those of a study file: the command line's, and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.options import every_option, keys_of
from llmsearch_optuna.redaction import redacted_values
from llmsearch_optuna.study_file.checks import check_constraints
from llmsearch_optuna.study_file.model import TABLES, StudyFile, check_one_model


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line puts in the place of a file's values; None leaves a value as it is."""

    data: str | None = None
    rows: int | None = None
    model: str | None = None
    server: str | None = None
    n_trials: int | None = None
    storage: str | None = None
    name: str | None = None
    samples: int | list[int] | None = None
    constraints: Mapping[str, str] | None = None

    def apply(self, file: StudyFile) -> StudyFile:
        """Return the file with these values."""
        data = changed_section(file.data, path=self.data, rows=self.rows)
        model = self._model(file.model)
        study = changed_section(
            file.study, n_trials=self.n_trials, storage=self.storage, name=self.name, samples=self.samples
        )
        constraints = {**(file.constraints or {}), **(self.constraints or {})} or None
        changed = {"data": data, "model": model, "study": study, "constraints": constraints}
        found = file.model_copy(update=changed)
        check_constraints(found)
        return found

    def _model(self, section: Any) -> Any:
        """The section with one model: what the command line names takes the place of either key."""
        if self.model is None and self.server is None:
            return section
        check_one_model(self.model, self.server, "--model {}", "--server {}")
        return type(section).model_validate({**section.model_dump(), "name": self.model, "server": self.server})


def with_defaults(file: StudyFile) -> StudyFile:
    """Return the file with what `search` does by default in the place of what it leaves out."""
    filled = {}
    for table in TABLES:
        section, options = getattr(file, table), every_option()
        left_out = {key: options[name] for key, name in keys_of(table).items() if getattr(section, key) is None}
        filled[table] = changed_section(section, **{key: option.effective for key, option in left_out.items()})
    return file.model_copy(update=filled)


def changed_section(section: Any, **values: Any) -> Any:
    """Return a table with other values; those that are None stay as they are.

    Raises:
        InputError: A value cannot be.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return section
    try:  # a value from the command line is held to the same rules
        return type(section).model_validate({**section.model_dump(), **given})
    except ValidationError as problem:
        said = [
            f"{error['loc'][0]} = {short(redacted_values(error['input']))}: {error['msg']}"
            for error in problem.errors()
        ]
        raise InputError("; ".join(dict.fromkeys(said))) from None
