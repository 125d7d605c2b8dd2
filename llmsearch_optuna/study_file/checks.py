"""Checks of a study file that its types do not make: names and values that only other rooms know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.study_file.judged import judge_to_be, with_judge
from llmsearch_optuna.study_file.model import StudyFile

if TYPE_CHECKING:
    from llmsearch_optuna.task.choices import TaskChoices


def check_choices(file: StudyFile) -> TaskChoices:
    """Return what of the task is searched; raises InputError where prompts or messages cannot be told apart."""
    from llmsearch_optuna.task.choices import TaskChoices

    data = file.data.model_dump()
    return TaskChoices.of(data["prompt"], data["system"], data["chat_template_kwargs"])


def check_space(file: StudyFile) -> Any:
    """Return the file's space, ready for `search`; raises InputError where a name or a value is not allowed."""
    from llmsearch_optuna.space.space import Space

    space = Space.from_tables(file.space)
    space.with_choices(check_choices(file))
    return space


def check_baseline(file: StudyFile) -> None:
    """Raise InputError where a name or a value of the baseline is not allowed."""
    from llmsearch_optuna.optimize.baselines import Baselines

    Baselines.of(file.baseline, file.baselines).labelled(check_choices(file))
    _check_values({} if isinstance(file.baseline, str) else file.baseline or {})
    for values in (file.baselines or {}).values():
        _check_values(values)


def check_try_first(file: StudyFile) -> None:
    """Raise InputError where a name or a value of what is to be tried first is not allowed."""
    for values in file.try_first or ():
        _check_values(values)
        check_choices(file).labelled(values)


def check_constraints(file: StudyFile) -> None:
    """Raise InputError where a condition names no metric, or its limit is none."""
    from llmsearch_optuna.optimize.constraints import Constraints

    Constraints.of(with_judge(file.constraints, _judge_to_be(file)))


def check_objectives(file: StudyFile) -> None:
    """Raise InputError where an objective is none."""
    from llmsearch_optuna.optimize.objectives import Objectives

    if file.study.objectives is not None:
        objectives = with_judge(file.study.objectives, _judge_to_be(file))
        Objectives.of(objectives, "maximize", metric=metric_name(file))


def check_metric(file: StudyFile) -> None:
    """Raise InputError where there is no such metric, or it has no such options."""
    metric_name(file)


def check_aggregate(file: StudyFile) -> None:
    """Raise InputError where samples cannot be made one score of as the file says."""
    from llmsearch_optuna.metrics.aggregates import Aggregate

    scorer = with_judge(file.data.scorer, _judge_to_be(file))
    Aggregate.of(file.data.aggregate, scorer=scorer, pass_score=file.data.pass_score)


def metric_name(file: StudyFile) -> str:
    """Return the metric's name for people.

    Raises:
        InputError: There is none, no such metric, or it has no such options.
    """
    from llmsearch_optuna.metrics.metric import Metric
    from llmsearch_optuna.task.library_task import is_library_task

    if file.data.metric is None:
        if is_library_task(file.data.path):
            return "the task's own"
        raise InputError("data.metric is missing")
    return Metric.of(with_judge(file.data.metric, _judge_to_be(file)), options=file.data.metric_options).name


def _judge_to_be(file: StudyFile) -> Any:
    return None if file.judge is None else judge_to_be(file.judge)


def _check_values(values: Mapping[str, Any]) -> None:
    from llmsearch_optuna.engine.sampling.after_thinking import flattened
    from llmsearch_optuna.engine.sampling.param_specs import check_value

    for name, value in flattened(values).items():
        check_value(name, value)
