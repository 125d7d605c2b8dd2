"""`confirm` and `check`: the rows that no trial has seen, decoded by another engine, or by the same one later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.declaration import declared, part
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import CheckOptions, ConfirmOptions, ModelOptions, ServerOptions
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.model import StudyFile
from llmsearch_optuna.study_file.parse import parse_study_file, read_study_file

if TYPE_CHECKING:
    from llmsearch_optuna.optimize.check import Check
    from llmsearch_optuna.optimize.confirm import Confirmation
    from llmsearch_optuna.search_result import SearchResult

Found = TypeVar("Found", "Confirmation", "Check")

ServedModel = Annotated[str | None, arguments.flag("--served-model", "served_model", declared(ServerOptions))]


def confirm(
    study: arguments.StudyArgument,
    server: arguments.Server = None,
    served_model: ServedModel = None,
    model: arguments.Model = None,
    data: arguments.Data = None,
    study_name: arguments.StudyName = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Decode winner and baseline on the locked rows with the engine that will serve, and give the verdict there.

    Data, prompt and metric are those of the study file, which the study remembers.
    """
    from llmsearch_optuna.api import confirm as confirm_once

    if server is None and model is None:
        raise InputError("say what will serve: --server URL, or --model with a folder, a hub id or an address")
    changes = Changes(data=data, model=model, server=server)
    found = _decoded_once_more(confirm_once, ConfirmOptions, study, study_name, changes, served_model)
    if as_json:
        _print_json(found.to_json())
        return
    from llmsearch_optuna.cli.output import print_confirmation

    print_confirmation(found)


def check(
    study: arguments.StudyArgument,
    margin: Annotated[float, arguments.flag("--margin", "margin", declared(CheckOptions))] = 0.0,
    server: arguments.Server = None,
    served_model: ServedModel = None,
    model: arguments.Model = None,
    data: arguments.Data = None,
    study_name: arguments.StudyName = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Exit with 1 when the recommended parameters are worse on the locked rows than when they were tuned.

    Model, data, prompt and metric are those of the study file, which the study remembers.
    """
    from llmsearch_optuna.api import check as check_once

    changes = Changes(data=data, model=model, server=server)
    found = _decoded_once_more(check_once, CheckOptions, study, study_name, changes, served_model, margin=margin)
    if as_json:
        _print_json(found.to_json())
    else:
        say(f"{found.engine}: {found.sentence}")
    if found.is_worse:
        raise typer.Exit(1)


def _decoded_once_more(
    function: Callable[..., Found],
    options: type[Any],
    study: str,
    study_name: str | None,
    changes: Changes,
    served_model: str | None,
    **more: Any,
) -> Found:
    """What `confirm` or `check` finds, with what its study file says and the command line changes."""
    result = arguments.load(study, study_name)
    given = _arguments(result, study, changes, served_model)
    told = part(options, given) | more
    return function(result, given["model"], given["dataset"], given.get("tokenizer"), **told)


def _print_json(values: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(values, indent=2, default=str))


def _arguments(result: SearchResult, study: str, changes: Changes, served_model: str | None) -> dict[str, Any]:
    """The arguments that were given to `search`, with another model and other data where the command line says so.

    How the study's model was loaded or asked says nothing about another one, and is left out with it.
    """
    given = search_arguments(changes.apply(_study_file(result, study)))
    if changes.model is not None or changes.server is not None:
        given = {name: value for name, value in given.items() if name not in {*declared(ModelOptions), "tokenizer"}}
    return given if served_model is None else {**given, "served_model": served_model}


def _study_file(result: SearchResult, study: str) -> StudyFile:
    if study.endswith(".toml"):
        return read_study_file(study)
    text = result.opened.study_file
    if text is None:
        raise InputError(
            f"the study {result.study.study_name!r} remembers no study file, since it was made from Python: call "
            "llmsearch_optuna.confirm or check there, with the data and metric that search got"
        )
    return parse_study_file(text, name=f"the study file in {result.opened.url}")
