"""The forms in which users bring a metric, each turned into one function of predictions, references and rows.

What the function answers is judged elsewhere. Nothing is called while a form is recognised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.checks import is_number, listed
from llmsearch_optuna.metrics.own_copy import own_copy

ScoreFunction = Callable[[Sequence[str], Sequence[Any], Sequence[Mapping[str, Any]], Sequence[Any]], Any]
"""``(predictions, references, rows, completions)`` to one score a row, or to one score of all."""


def adapted(function: Callable[..., Any]) -> ScoreFunction:
    """Call the function in the form that its argument names tell."""
    names = _names(function)
    if {"y_true", "y_pred"} <= names:
        return lambda predictions, references, rows, completions: function(
            y_true=[
                own_copy(reference if isinstance(reference, Mapping) else row)
                for reference, row in zip(references, rows, strict=True)
            ],
            y_pred=list(predictions),
            **({"completions": list(completions)} if "completions" in names else {}),
        )
    if {"predictions", "references"} <= names:
        return lambda predictions, references, rows, completions: function(
            predictions=list(predictions),
            references=own_copy(list(references)),
            **({"rows": own_copy(list(rows))} if "rows" in names else {}),
            **({"completions": list(completions)} if "completions" in names else {}),
        )
    return lambda predictions, references, rows, completions: function(list(predictions), own_copy(list(references)))


def asks_for_completions(function: Callable[..., Any]) -> bool:
    """Tell whether `adapted` hands the function completions: where it names the other arguments, too."""
    names = _names(function)
    return "completions" in names and ({"predictions", "references"} <= names or {"y_true", "y_pred"} <= names)


def _names(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # compiled functions have no signature
        return set()


def computing(module: Any, *, key: str | None, per_row: bool | None, name: str) -> ScoreFunction:
    """Call the object's ``compute`` on all rows, or once a row; ``key`` picks one of several results."""
    options = _row_options(module)

    def compute(predictions: Sequence[str], references: Sequence[Any], rows: object, completions: object) -> Any:
        results = module.compute(predictions=list(predictions), references=own_copy(list(references)), **options)
        return _picked(results, key, name)

    def compute_each(
        predictions: Sequence[str], references: Sequence[Any], rows: object, completions: object
    ) -> list[Any]:
        pairs = zip(predictions, references, strict=True)
        answers = [compute([prediction], [reference], rows, completions) for prediction, reference in pairs]
        return [answer if is_number(answer) else listed(answer)[0] for answer in answers]

    return compute_each if per_row else compute


def _row_options(module: Any) -> dict[str, Any]:
    """Ask for scores by row where the module can give them (``evaluate``'s rouge)."""
    for method in (getattr(module, "_compute", None), module.compute):
        try:
            if method is not None and "use_aggregator" in inspect.signature(method).parameters:
                return {"use_aggregator": False}
        except (TypeError, ValueError):
            continue
    return {}


def _picked(results: Any, key: str | None, name: str) -> Any:
    if not isinstance(results, Mapping):
        return results
    for candidate in (key,) if key is not None else (name, "score"):
        if candidate in results:
            return results[candidate]
    if key is None and len(results) == 1:
        return next(iter(results.values()))
    wanted = f"has no result {key!r}" if key is not None else "gives several results"
    raise InputError(
        f"metric {name!r} {wanted}: choose one of {', '.join(map(str, results))} with "
        f"metric=Metric.of(..., key={str(next(iter(results), name))!r}) of llmsearch_optuna.metrics"
    )
