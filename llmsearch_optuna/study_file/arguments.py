"""Turns a study file into the arguments of `search`. Nothing is loaded or decoded here, but for a judge's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmsearch_optuna.declaration import declared, part
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import TaskOptions, keys_of
from llmsearch_optuna.study_file.checks import check_space
from llmsearch_optuna.study_file.judged import MEASURING, opened_judge, with_judge
from llmsearch_optuna.study_file.model import DEMO, TABLES, JudgeSection, ModelSection, PrunerSection, StudyFile

DEMO_DIALOGUES = Path(__file__).parent.parent / "data" / "dialogues.jsonl"


def search_arguments(file: StudyFile) -> dict[str, Any]:
    """Return the keyword arguments of `search` that a study file stands for (the demo's names resolved).

    Raises:
        InputError: The file leaves the data to the command line, and the command line gave none.
    """
    of_task = declared(TaskOptions)
    told = _said(file)
    if file.judge is not None:
        metric = opened_judge(file.judge, _model(file.judge))
        told |= {name: with_judge(told[name], metric) for name in MEASURING if name in told}
    said = {name: value for name, value in told.items() if name not in of_task and name != "server"}
    given = {"model": _model(file.model), "dataset": _task(file, told), "space": check_space(file)}
    return {**said, **given, **({} if file.study.pruner is None else {"pruner": _pruner(file.study.pruner)})}


def _said(file: StudyFile) -> dict[str, Any]:
    """What the file says, by the names of the options; what it leaves out is what `search` itself does by default."""
    values = {"": file.model_dump(exclude=set(TABLES))} | {table: getattr(file, table).model_dump() for table in TABLES}
    said = {name: values[table][key] for table in values for key, name in keys_of(table).items()}
    return {name: value for name, value in said.items() if value is not None}


def _pruner(given: str | PrunerSection | None) -> Any:
    if not isinstance(given, PrunerSection):
        return given
    from llmsearch_optuna.optimize.pruner import PairedPruner

    return PairedPruner(**given.model_dump())


def _model(section: ModelSection | JudgeSection) -> str:
    if section.server is not None:
        return str(section.server)
    if section.name != DEMO:
        return str(section.name)
    from llmsearch_optuna.demo.model import demo_model_folder

    return str(demo_model_folder())


def _task(file: StudyFile, said: Mapping[str, Any]) -> Any:
    from llmsearch_optuna.task.task import Task

    path = file.data.path
    if path is None:
        raise InputError("the study file leaves the data to you: give --data PATH, or data.path in the file")
    return Task.of(DEMO_DIALOGUES if path == DEMO else path, **part(TaskOptions, said))
