"""The metrics that have a name: ready ones, functions that make them with options, and what weighs several.

They register themselves when the package `metrics` is imported. No metric is made here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llmsearch_optuna.errors import InputError

Factory = TypeVar("Factory", bound=Callable[..., Any])

FACTORIES: dict[str, Callable[..., Any]] = {}
"""Metrics that take options, all of them by keyword; each can do without. By their names."""

BUILT_IN: dict[str, Any] = {}
"""The metrics that compare texts and take no options, by their names."""

COMBINING: list[Callable[[Mapping[Any, Any], Mapping[str, Any] | None], Any]] = []
"""What makes one metric of several with their weights, and of their options."""


def named(factory: Factory) -> Factory:
    """Let a factory's name stand for the metric."""
    FACTORIES[factory.__name__] = factory
    return factory


def combining(factory: Factory) -> Factory:
    """Let a factory make one metric of several."""
    COMBINING.append(factory)
    return factory


def made(name: str, options: Mapping[str, Any]) -> Any:
    """Return the metric that the factory of this name makes with these options.

    Raises:
        InputError: It has no such option, or refuses what the option says.
    """
    known = list(inspect.signature(FACTORIES[name]).parameters)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(f"metric {name!r} has no option {option!r}{hint} ({has})")
    return FACTORIES[name](**options)


def metric_names() -> tuple[str, ...]:
    """Return the names of all metrics that are known by one."""
    return (*BUILT_IN, *FACTORIES)


def unknown(name: str, names: Sequence[str]) -> InputError:
    """Return the error for a name that no metric has; suggests the nearest."""
    if name == "judge":
        return InputError(
            "metric 'judge' needs to know which model judges: give llmsearch_optuna.judge(model, rubric), or a table "
            "[judge] in a study file"
        )
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    folded = {known.lower(): known for known in names}
    suggestion = folded.get(name.lower()) or (near[0] if near else None)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    return InputError(
        f"unknown metric {name!r}: {hint}Built in are {', '.join(names)}. "
        "Others: pass a function(predictions, references), or evaluate.load(name)."
    )
