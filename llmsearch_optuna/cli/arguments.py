"""Options and arguments that several commands share, and what a STUDY argument means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from llmsearch_optuna.declaration import Option
from llmsearch_optuna.options import every_option
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.model import StudyFile
from llmsearch_optuna.study_file.parse import read_study_file

if TYPE_CHECKING:
    from llmsearch_optuna.search_result import SearchResult

StudyFileArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file.")]
StudyArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's database (file or URL), its name, or its study file.")
]
StudyName: TypeAlias = Annotated[
    str | None, typer.Option("--study-name", help="Which study, where a database holds several.")
]


def flag(name: str, option: str, options: Mapping[str, Option] | None = None) -> Any:
    """The flag of a command that stands for an option; its help and its limits are the option's.

    Args:
        name: Such as ``"--n-trials"``.
        option: Such as ``"n_trials"``.
        options: Where to look; all arguments of `search` by default.
    """
    found = (every_option() if options is None else options)[option]
    least = None if found.limits is None or found.limits.ge is None else int(found.limits.ge)
    return typer.Option(name, min=least, help=found.help)


Data: TypeAlias = Annotated[str | None, flag("--data", "dataset")]
Rows: TypeAlias = Annotated[int | None, flag("--rows", "limit")]
Model: TypeAlias = Annotated[str | None, flag("--model", "model")]
Server: TypeAlias = Annotated[str | None, flag("--server", "server")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def resolved(path: Path, changes: Changes) -> StudyFile:
    """The study file with what the command line puts in the place of its values."""
    return changes.apply(read_study_file(path))


def load(study: str, study_name: str | None) -> SearchResult:
    """The result of a study that exists; see `StudyArgument` for what the text may be."""
    from llmsearch_optuna.search_result import load_result

    storage, name = locate(study, study_name)
    return load_result(storage, name)


def locate(study: str, study_name: str | None) -> tuple[str | None, str | None]:
    """(storage, study name) of a STUDY argument."""
    if study.endswith(".toml"):
        section = read_study_file(study).study
        return section.storage, study_name or section.name
    if "://" in study or study.endswith((".db", ".sqlite", ".sqlite3")) or _is_file(study):
        return study, study_name
    return None, study_name or study


def _is_file(study: str) -> bool:
    try:
        return Path(study).is_file()
    except (OSError, ValueError):  # too long for a file's name
        return False


def beside(result: SearchResult, suffix: str) -> Path:
    """A path for a file that belongs to a study: beside its database, or here where nothing can be written there."""
    database = result.opened.path
    if database is None or result.opened.read_only:
        return Path(f"{result.study.study_name}{suffix}" if database is None else f"{database.stem}{suffix}")
    return database.with_suffix(suffix)
