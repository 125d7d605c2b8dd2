"""`score`: one set of parameters on a study file's data, without a study."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import ModelOptions, part
from llmsearch_optuna.study_file.model import Changes, metric_name, search_arguments


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

    file = arguments.resolved(study, Changes(data=data, rows=rows, model=model))
    given = (_read_params(params) if params else {}) | dict(_name_and_value(text) for text in values or ())
    given_to_search = search_arguments(file)
    base = Space.of(given_to_search["space"]).baseline_values({}, file.baseline)
    found = score_once(
        given_to_search["model"],
        given_to_search["dataset"],
        {**base, **given},
        given_to_search.get("tokenizer"),
        **part(ModelOptions, given_to_search),
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


def _name_and_value(text: str) -> tuple[str, Any]:
    """``temperature=0.7`` as TOML reads it; what TOML does not read is a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"{text!r} is no parameter; write NAME=VALUE, such as temperature=0.7")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
