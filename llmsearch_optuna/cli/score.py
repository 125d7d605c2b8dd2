"""`score`: one set of parameters on a study file's data, without a study."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.declaration import part
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import ModelOptions
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.checks import metric_name


def score(
    study: arguments.StudyFileArgument,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Parameters, such as temperature=0.7.")
    ] = None,
    params: Annotated[
        Path | None, typer.Option("--params", help="A JSON file with parameters, such as a generation_config.json.")
    ] = None,
    data: arguments.Data = None,
    rows: arguments.Rows = None,
    model: arguments.Model = None,
    completions: Annotated[int, typer.Option("--completions", min=0, help="Print so many completions.")] = 3,
    as_json: arguments.AsJson = False,
) -> None:
    """Score one set of parameters on a study file's data and metric.

    Without parameters the file's baseline is scored. With some, they are laid over it.
    """
    from llmsearch_optuna.api import score as score_once
    from llmsearch_optuna.space.space import Space

    for text in values or ():
        name, value = _name_and_value(text)
        say(f"{name} = {value!r}", err=True)
    file = arguments.resolved(study, Changes(data=data, rows=rows, model=model))
    given = (_read_params(params) if params else {}) | dict(_name_and_value(text) for text in values or ())
    given_to_search = search_arguments(file)
    first = given_to_search["dataset"].choices.first
    base = Space.of(given_to_search["space"]).baseline_values(first, file.baseline)
    samples = given_to_search.get("samples", 1)
    found = score_once(
        given_to_search["model"],
        given_to_search["dataset"],
        {**base, **given},
        given_to_search.get("tokenizer"),
        **part(ModelOptions, given_to_search),
        samples=samples if isinstance(samples, int) else min(samples),
    )
    if as_json:
        texts = [c.text for c in found.completions]
        facts = {"score": found.score, "scores": found.scores, "params": dict(found.params), "completions": texts}
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        from llmsearch_optuna.cli.output import print_score

        print_score(found, metric=metric_name(file), completions=completions)


def _read_params(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise InputError(f"--params {path} cannot be read: {problem}") from None
    if not isinstance(found, dict):
        raise InputError(f"--params {path} must hold an object of parameters, but holds a {type(found).__name__}")
    return {name: value for name, value in found.items() if name not in ("transformers_version", "_from_model_config")}


_SPELLED = {"True": True, "False": False, "None": None}


def _name_and_value(text: str) -> tuple[str, Any]:
    """``temperature=0.7`` as Python, JSON or TOML read it; all else is a text, whose escapes (``\\n``) are read."""
    name, equals, value = text.partition("=")
    if not equals or not all(word.isidentifier() for word in name.split(".")):
        raise InputError(f"{text!r} is no parameter; write NAME=VALUE, such as temperature=0.7")
    if value in _SPELLED:
        return name, _SPELLED[value]
    for read in (json.loads, lambda written: tomllib.loads(f"value = {written}")["value"], _unescaped):
        try:
            return name, read(value)
        except (ValueError, RecursionError):
            continue
    return name, value


def _unescaped(value: str) -> Any:
    """A shell leaves the backslash in ``stop="\\n"``."""
    return json.loads('"' + value.replace('"', '\\"') + '"')
