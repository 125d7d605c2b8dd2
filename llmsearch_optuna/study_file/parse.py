"""Reads a study file; every error names the file, the line and the key.

Paths in a file are taken from the folder where the command runs, as on the command line.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.redaction import redacted_values
from llmsearch_optuna.study_file.checks import (
    check_aggregate,
    check_baseline,
    check_choices,
    check_constraints,
    check_metric,
    check_objectives,
    check_space,
    check_try_first,
)
from llmsearch_optuna.study_file.judged import check_judge
from llmsearch_optuna.study_file.locations import place, place_of_mention
from llmsearch_optuna.study_file.model import StudyFile


def read_study_file(path: str | Path) -> StudyFile:
    """Return what a study file says.

    Raises:
        InputError: The file is not there, is no TOML, or has a key or value that does not belong; names file, line
            and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no study file {path}; `studies/quickstart.toml` is an example") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    return parse_study_file(text, name=str(path))


def parse_study_file(text: str, *, name: str = "study file") -> StudyFile:
    """Return what the text of a study file says; `name` stands in the errors (see `read_study_file`)."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{name} is nested too deep to be a study file") from None
    except ValueError as problem:  # a number of thousands of digits is none of TOML's own errors
        raise InputError(f"{name} is no TOML: {problem}") from None
    try:
        file = StudyFile.model_validate(values)
    except ValidationError as problem:
        raise InputError("\n".join(_explain(error, text, name) for error in _of_one_form(problem.errors()))) from None
    with _placed(name, lambda said: place_of_mention(text, said, "data")):
        check_choices(file)
    with _placed(name, lambda said: place_of_mention(text, said, "space")):
        check_space(file)
    with _placed(name, lambda said: place_of_mention(text, said, "baseline")):
        check_baseline(file)
    with _placed(name, lambda said: place_of_mention(text, said, "try_first")):
        check_try_first(file)
    with _placed(name, lambda _: place(text, ["judge"] if file.judge else ["data", "metric"])):
        check_judge(file)
    with _placed(name, lambda said: place_of_mention(text, said, "constraints")):
        check_constraints(file)
    with _placed(name, lambda _: place(text, ["study", "objectives"])):
        check_objectives(file)
    with _placed(name, lambda _: place(text, ["data", "metric"])):
        check_metric(file)
    with _placed(name, lambda _: place(text, ["data", "aggregate"])):
        check_aggregate(file)
    return file


@contextmanager
def _placed(name: str, place_of: Callable[[str], str]) -> Iterator[None]:
    """Say the file and the line in front of what is wrong."""
    try:
        yield
    except InputError as problem:
        raise InputError(f"{name}{place_of(str(problem))}: {problem}") from None


def _of_one_form(errors: Sequence[Any]) -> list[Any]:
    """Without what is said only because a value might have been a table, or a table a value.

    Of a value that may have several forms the deepest errors count, each once.
    """
    kept = [
        error
        for error in errors
        if not (error["type"] == "literal_error" and isinstance(error["input"], dict | int | float))
        and not (error["type"] == "model_type" and isinstance(error["input"], str))
    ]
    depth: dict[Any, int] = {}
    for error in kept:
        depth[error["loc"][:2]] = max(depth.get(error["loc"][:2], 0), len(_keys(error)))
    found = {(*_keys(e), e["msg"]): e for e in reversed(kept) if len(_keys(e)) == depth[e["loc"][:2]]}
    return list(reversed(found.values()))


def _explain(error: Mapping[str, Any], text: str, name: str) -> str:
    keys = _keys(error)
    where = f"{name}{place(text, keys)}: {'.'.join(str(key) for key in keys) or 'the file'}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{where} is not a key here{hint} The keys are {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where} = {short(redacted_values(error['input']))}: {message[:1].lower()}{message[1:]}"


def _keys(error: Mapping[str, Any]) -> list[Any]:
    """Where an error is in the file, without the forms that a value may have."""
    return [key for key in error["loc"] if not (isinstance(key, str) and ("[" in key or key in _UNION_MEMBERS))]


_UNION_MEMBERS = frozenset(
    {"str", "int", "float", "bool", "list", "dict", "PrunerSection", "Message", "constrained-int", "constrained-float"}
)


def _table(annotation: Any) -> Any:
    """The table among what a key may hold, where it may be left out."""
    return next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = StudyFile
    for key in path:
        model = _table(model.model_fields[key].annotation) if key in getattr(model, "model_fields", {}) else None
    return list(getattr(model, "model_fields", {}))
