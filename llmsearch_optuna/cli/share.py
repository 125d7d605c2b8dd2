"""`export` and `import`: hand a study, or what it recommends, to somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.errors import InputError

if TYPE_CHECKING:
    from llmsearch_optuna.search_result import SearchResult


def export(
    study: arguments.StudyArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write into.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write the whole study into this zip; `import` opens it.")
    ] = None,
    study_name: arguments.StudyName = None,
) -> None:
    """Write the recommended generation_config.json, or with --bundle the whole study as one zip."""
    if (output is None) == (bundle is None):
        raise InputError("give either --output FOLDER or --bundle FILE.zip")
    result = arguments.load(study, study_name)
    if bundle is not None:
        from llmsearch_optuna.cli.bundle import write_bundle

        typer.echo(f"{write_bundle(result, bundle)}: study, report and parameters; open it with `import`")
    elif output is not None:
        _export_parameters(result, output)


def import_(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE.zip", help="What `export --bundle` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An empty folder, or one to make. Default: the study's name.")
    ] = None,
) -> None:
    """Unpack a bundle, so that its study can be read, or gone on with."""
    from llmsearch_optuna.cli.bundle import STUDY_FILE, open_bundle

    result = open_bundle(bundle, output)
    database = result.opened.path
    assert database is not None
    typer.echo(f"{result.study.study_name}: {result.summary}")
    typer.echo(f"read it:    llmsearch-optuna status {database}")
    study_file = database.with_name(STUDY_FILE)
    if study_file.is_file():
        typer.echo(f"go on with: llmsearch-optuna run {study_file} --storage {database}")


def _export_parameters(result: SearchResult, output: Path) -> None:
    path = result.save_generation_config(output)
    verdict = result.verdict
    origin = "the winner's" if verdict is not None and verdict.recommends_winner else "the baseline's"
    typer.echo(f"{path}: {origin} parameters")
    typer.echo(f"{path.parent / 'evidence.json'}: {result.summary}")
