"""`status`, `report`, `compare` and `dashboard`: read studies that exist, running or finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say


def status(
    study: arguments.StudyArgument, study_name: arguments.StudyName = None, as_json: arguments.AsJson = False
) -> None:
    """Say how far a study is, here or in another process."""
    from llmsearch_optuna.cli.output import print_status, status_facts

    result = arguments.load(study, study_name)
    if as_json:
        typer.echo(json.dumps(status_facts(result), indent=2, default=str))
    else:
        print_status(result)


def report(
    study: arguments.StudyArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: beside the database.")] = None,
    rescore: Annotated[
        list[str] | None,
        typer.Option("--rescore", metavar="METRIC", help="Score the stored completions with another metric too."),
    ] = None,
    study_name: arguments.StudyName = None,
) -> None:
    """Write the report: one HTML page that needs nothing else."""
    from llmsearch_optuna.cli.output import print_rescored
    from llmsearch_optuna.report import rescored
    from llmsearch_optuna.report.page import write_report

    result = arguments.load(study, study_name)
    others = [rescored(result, metric) for metric in rescore or ()]
    for other in others:
        print_rescored(result, other)
    say(f"report: {write_report(result, output or arguments.beside(result, '.html'), others)}")


def compare(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY STUDY...", help="Databases, names or study files; two or more.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page goes.")] = Path("comparison.html"),
) -> None:
    """Compare what studies of the same data recommend, row by row: two models, two prompts."""
    from llmsearch_optuna.analysis.compare import compare_studies
    from llmsearch_optuna.cli.output import print_comparison
    from llmsearch_optuna.report.compare_page import write_comparison

    found = compare_studies([arguments.load(study, None) for study in studies])
    print_comparison(found)
    say(f"comparison: {write_comparison(found, output)}")


def dashboard(
    study: arguments.StudyArgument,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port on 127.0.0.1.")] = 8080,
    study_name: arguments.StudyName = None,
) -> None:
    """Open the study in optuna-dashboard, on this machine only; ends with Ctrl-C."""
    from llmsearch_optuna import dashboard as dashboards
    from llmsearch_optuna.errors import StudyError

    result = arguments.load(study, study_name)
    if not dashboards.is_installed():
        raise StudyError(dashboards.NOT_INSTALLED)
    if not result.opened.read_only:
        dashboards.describe_all(result)
    say(f"{result.study.study_name}: http://{dashboards.HOST}:{port}/dashboard  (Ctrl-C to end)", err=True)
    try:
        dashboards.serve(result.opened, port=port)
    except KeyboardInterrupt:
        say("dashboard ended; the study is untouched", err=True)
