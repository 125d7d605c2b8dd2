"""Makes a metric of a function that scores one row, and of one that reads what the row is to be judged by.

Shared by the built-in metrics that compare with more than a text: a schema, a pattern, a call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llmsearch_optuna.metrics.metric import Metric

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion

Expected = TypeVar("Expected")

Row = Mapping[str, Any]


def by_row(
    name: str,
    score: Callable[[str, Expected], float],
    read: Callable[[Any, Row], Expected],
    *,
    columns: Sequence[str] = (),
    answer: Callable[[str], Hashable | None] | None = None,
    **options: Any,
) -> Metric:
    """Return a metric from 0 to 1 that scores row by row.

    Args:
        name: Of the metric.
        score: Scores a text by what was read.
        read: Makes of a reference and its row what the text is judged by; raises where it cannot.
        columns: The columns of a row that ``read`` looks at, beside the reference.
        answer: What a text answers; see `Scorer`.
        options: What the metric was made with; JSON-able.
    """

    def function(
        predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Row], completions: object
    ) -> list[float]:
        found = zip(predictions, references, rows, strict=True)
        return [score(prediction, read(reference, row)) for prediction, reference, row in found]

    return Metric(
        name=name,
        function=function,
        bounds=(0.0, 1.0),
        per_row=True,
        description={"built_in": name, **options},
        check_row=read,
        columns=tuple(columns),
        answer=answer,
    )


def by_completion(name: str, score: Callable[[str, Completion], float], **options: Any) -> Metric:
    """Return a metric from 0 to 1 that scores a text and how it was decoded, without any reference."""

    def function(
        predictions: Sequence[str], references: object, rows: object, completions: Sequence[Completion]
    ) -> list[float]:
        return [score(prediction, completion) for prediction, completion in zip(predictions, completions, strict=True)]

    return Metric(
        name=name,
        function=function,
        bounds=(0.0, 1.0),
        per_row=True,
        description={"built_in": name, **options},
        reads_completions=True,
    )
