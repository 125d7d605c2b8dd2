"""`confirm` and `check`: the rows that no trial has seen, decoded by another engine, or by the same one later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.declaration import declared, part
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import CheckOptions, ConfirmOptions, ModelOptions, ServerOptions
from llmsearch_optuna.study_file.model import Changes, StudyFile, parse_study_file, read_study_file, search_arguments

if TYPE_CHECKING:
    from llmsearch_optuna.search_result import SearchResult

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

    if (server is None) == (model is None):
        raise InputError("say what will serve: --server URL, or --model with a folder, a hub id or an address")
    result = arguments.load(study, study_name)
    given = _arguments(result, study, server or model, served_model, data)
    found = confirm_once(
        result, given["model"], given["dataset"], given.get("tokenizer"), **part(ConfirmOptions, given)
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, default=str))
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

    if server is not None and model is not None:
        raise InputError("give --server or --model, not both")
    result = arguments.load(study, study_name)
    given = _arguments(result, study, server or model, served_model, data)
    found = check_once(
        result,
        given["model"],
        given["dataset"],
        given.get("tokenizer"),
        **part(ConfirmOptions, given),
        margin=margin,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, default=str))
    else:
        say(f"{found.engine}: {found.sentence}")
    if found.is_worse:
        raise typer.Exit(1)


def _arguments(
    result: SearchResult, study: str, model: str | None, served_model: str | None, data: str | None
) -> dict[str, Any]:
    """The arguments that were given to `search`, with another model and other data where the command line says so.

    How the study's model was loaded or asked says nothing about another one, and is left out with it.
    """
    file = Changes(data=data, model=model).apply(_study_file(result, study))
    given = search_arguments(file)
    if model is not None:
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
