"""Metrics: predictions and references in, one score a row or one score of all rows out.

A metric is a built-in name, a user's function in one of three forms, or an object of the ``evaluate`` library; all
become one ``Metric``. It is tried before anything is decoded, and what it answers is checked every time. Datasets,
trials and models must not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable
from llmsearch_optuna.metrics.adapters import adapted, asks_for_completions, computing
from llmsearch_optuna.metrics.bounds import checked_bounds
from llmsearch_optuna.metrics.factories import BUILT_IN, COMBINING, FACTORIES, made, metric_names, unknown
from llmsearch_optuna.metrics.preflight import Preflight
from llmsearch_optuna.metrics.scoring import Scorer
from llmsearch_optuna.metrics.text_scores import plain_answer
from llmsearch_optuna.types import Direction

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion


@dataclass(frozen=True, kw_only=True)
class Metric(Scorer):
    """A scorer that can be made of what users give, and tried before it is used; its attributes are `Scorer`'s."""

    @staticmethod
    def of(
        metric: object,
        *,
        name: str | None = None,
        bounds: tuple[float, float] | None = None,
        per_row: bool | None = None,
        key: str | None = None,
        options: Mapping[str, Any] | None = None,
        answer: Callable[[str], Hashable | None] | None = None,
    ) -> Metric:
        """Return the metric that ``metric`` stands for.

        Args:
            metric: A built-in name (see `metric_names`); a function ``fn(predictions, references)`` that returns one
                score a row (best: it can be compared row by row) or one score of all rows;
                ``scorer(y_true, y_pred)``, whose ``y_true`` is a dict a row: the reference where it names several
                columns, else the whole row; a loaded ``evaluate`` module or anything with its ``compute``.
                A function that names ``completions`` beside ``predictions`` and ``references`` (or ``y_true`` and
                ``y_pred``) is given the `Completion` of each row too: its text as it was decoded, its tokens, and
                why it ended; with an attribute ``reads_logprobs`` that is True also how likely its tokens are.
                A dict of such metrics and their weights is the weighted mean of their scores a row.
            name: What to call it; a function's own name otherwise.
            bounds: Lowest and highest possible score. A function may carry them as an attribute ``bounds``.
            per_row: For objects with ``compute``: True calls it once a row, which gives row scores to a measure
                that means something on one row.
            key: For objects with ``compute``: which of the results counts (``"rouge1"``).
            options: Of a built-in metric, such as ``{"schema": "schema.json"}`` of ``json_schema``; of several, by
                their names.
            answer: What a text answers, where samples vote (``aggregate="majority"``): a number, a text or a tuple,
                equal for texts that say the same; None for a text without an answer. A function may carry it as an
                attribute ``answer``; built-in metrics have their own.

        Raises:
            InputError: An unknown name, bounds that are none, or an object that is no metric.
        """
        found = _resolve(metric, name, per_row, key, options)
        if bounds is None:
            bounds = found.bounds
        if answer is not None:
            found = replace(found, answer=answer, description={**found.description, "answer": _described(answer)})
        return replace(found, bounds=_checked_bounds(bounds, found.name))

    def after(self, postprocess: Callable[[str], str]) -> Metric:
        """Return the metric that scores what ``postprocess`` makes of a prediction; completions stay as they are."""

        def function(
            predictions: Sequence[str],
            references: Sequence[Any],
            rows: Sequence[Mapping[str, Any]],
            completions: Sequence[Completion],
        ) -> Any:
            return self.function([_processed(postprocess, text) for text in predictions], references, rows, completions)

        def answer(text: str) -> Hashable | None:
            return answer_of(self, _processed(postprocess, text))

        described = {**self.description, "postprocess": describe_callable(postprocess)}
        return replace(self, function=function, description=described, answer=answer)

    def check(
        self,
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        direction: Direction | None = "maximize",
    ) -> Metric:
        """Try the metric on the first two rows, with the references as predictions, and return it with its form known.

        Args:
            references: What it is to compare with, one a row; those of a built-in metric are all looked at.
            rows: The rows themselves.
            direction: Whether a higher score is better; None where nobody said.

        Raises:
            InputError: It raised, returned a wrong number of scores, or something that is no finite number; it cannot
                use the references of some rows; or a lower score seems to be better, and nobody said so.
        """
        return self.checked(Preflight(references, rows, direction))

    def checked(self, tried: Preflight) -> Metric:
        """Return the metric with its form known; see `check`."""
        return tried.check(self)


def _processed(postprocess: Callable[[str], str], text: str) -> str:
    try:
        processed = postprocess(text)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RuntimeError(f"postprocess raised {describe_error(error)}") from error
    if not isinstance(processed, str):
        raise TypeError(f"postprocess must return a text, but returned {short(processed)}")
    return processed


def _resolve(
    metric: object, name: str | None, per_row: bool | None, key: str | None, options: Mapping[str, Any] | None
) -> Metric:
    if isinstance(metric, Mapping):
        several: Metric = COMBINING[0](metric, options)
        return several if name is None else replace(several, name=name)
    if isinstance(metric, str):
        known = _by_name(metric, options or {})
        return known if name is None else replace(known, name=name)
    if options:
        raise InputError(f"options {', '.join(options)} are for a metric that is given by its name")
    if isinstance(metric, Metric):
        return replace(metric, name=name or metric.name)
    if callable(getattr(metric, "compute", None)):
        return _from_compute(metric, name, per_row, key)
    if callable(metric):
        return _from_function(metric, name, per_row)
    raise InputError(
        f"metric={short(metric)} is no metric: give one of {', '.join(metric_names())}, "
        "a function(predictions, references), "
        "or a loaded evaluate module"
    )


def _by_name(name: str, options: Mapping[str, Any]) -> Metric:
    if name in FACTORIES:
        found: Metric = made(name, options)
        return found
    if name not in BUILT_IN:
        raise unknown(name, metric_names())
    if options:
        raise InputError(f"metric {name!r} takes no options, and was given {', '.join(options)}")
    known: Metric = BUILT_IN[name]
    return known


def _from_function(function: Callable[..., Any], name: str | None, per_row: bool | None) -> Metric:
    called = name or callable_name(function, "metric")
    bounds, answer = getattr(function, "bounds", None), getattr(function, "answer", None)
    description: dict[str, Any] = {"name": name} if name else dict(describe_callable(function))
    if callable(answer):
        description["answer"] = _described(answer)
    return Metric(
        name=called,
        function=adapted(function),
        bounds=_checked_bounds(bounds, called),
        per_row=per_row,
        description=description,
        reads_completions=asks_for_completions(function),
        reads_logprobs=getattr(function, "reads_logprobs", False) is True,
        answer=answer if callable(answer) else None,
    )


def _described(answer: Callable[[str], Hashable | None]) -> dict[str, Any]:
    if not callable(answer):
        raise InputError(f"answer={short(answer)} must be a function from a text to what it answers")
    return dict(describe_callable(answer))


def answer_of(scorer: Scorer, text: str) -> Hashable | None:
    """Return what a text answers in the eyes of a metric; None where it answers nothing."""
    return (scorer.answer or plain_answer)(text)


def _from_compute(module: Any, name: str | None, per_row: bool | None, key: str | None) -> Metric:
    module_name = str(getattr(module, "name", None) or type(module).__name__)
    called = name or key or module_name
    version = getattr(module, "_hash", None) or getattr(module, "hash", None)
    return Metric(
        name=called,
        function=computing(module, key=key, per_row=per_row, name=module_name),
        bounds=_checked_bounds(getattr(module, "bounds", None), called),
        per_row=per_row,
        description={"compute": module_name, "key": key, "per_row": per_row, "version": version and str(version)},
    )


def _checked_bounds(bounds: Any, name: str) -> tuple[float, float] | None:
    return None if bounds is None else checked_bounds(bounds, f"bounds={short(bounds)} of metric {name!r}", (0, 1))
