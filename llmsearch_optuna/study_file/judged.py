"""The judge of a study file: its metric ``"judge"`` stands for the model that its table ``[judge]`` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.declaration import declared, part
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import ModelOptions

if TYPE_CHECKING:
    from llmsearch_optuna.metrics.metric import Metric
    from llmsearch_optuna.study_file.model import JudgeSection, StudyFile

JUDGE = "judge"

MEASURING = ("metric", "scorer", "constraints", "objectives")
"""Arguments of `search` that name metrics."""

_OWN = ("question", "repeats", "params", "labels", "reference", "cache", "tokenizer")
"""Keys of the table that are arguments of `judge`, beside how its model is loaded or asked."""


def check_judge(file: StudyFile) -> None:
    """Raise InputError where a judge is named and not described, or described and not named."""
    is_named = any(_names_judge(given) for given in _places(file))
    if is_named and file.judge is None:
        raise InputError('the metric "judge" needs a table [judge]: which model judges (name or server), and a rubric')
    if file.judge is not None and not is_named:
        raise InputError(
            'the table [judge] describes a judge that nothing asks: give metric = "judge", or name it among weighted '
            "metrics, constraints, objectives or as the scorer"
        )


def judge_to_be(section: JudgeSection) -> Metric:
    """Return what the judge will be, without its model: to check what is said of it."""
    from llmsearch_optuna.metrics.metric import Metric

    def function(*_: object) -> list[float]:
        raise InputError("the judge is described, and not opened yet")

    low, high = section.scale or (1.0, 5.0)
    return Metric(name=JUDGE, function=function, bounds=(float(low), float(high)), per_row=True)


def opened_judge(section: JudgeSection, model: str) -> Metric:
    """Return the judge as a metric; loads its model, or asks its server.

    Args:
        section: The table.
        model: Its model's name, folder or address.

    Raises:
        InputError: Something of it cannot be used; says that it is the judge's.
    """
    from llmsearch_optuna.judging.judge import judge

    said = {name: value for name, value in section.model_dump().items() if value is not None}
    own = {name: said[name] for name in _OWN if name in said}
    if "scale" in said:
        own["scale"] = tuple(said["scale"])
    loading = {name: said[name] for name in part(ModelOptions, said) if name in declared(ModelOptions)}
    try:
        return judge(model, said["rubric"], **own, **loading)
    except InputError as problem:
        raise InputError(f"[judge]: {problem}") from problem.__cause__


def with_judge(given: Any, metric: Metric | None) -> Any:
    """Return what names metrics (a name, a list, or a mapping by name) with the judge itself where it is named."""
    if metric is None:
        return given
    if isinstance(given, Mapping):
        return {metric if name == JUDGE else name: value for name, value in given.items()}
    if isinstance(given, list):
        return [metric if name == JUDGE else name for name in given]
    return metric if given == JUDGE else given


def _places(file: StudyFile) -> tuple[Any, ...]:
    return file.data.metric, file.data.scorer, file.constraints, file.study.objectives


def _names_judge(given: Any) -> bool:
    return given == JUDGE if isinstance(given, str) else given is not None and JUDGE in given
