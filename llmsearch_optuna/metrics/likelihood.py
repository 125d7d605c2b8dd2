"""How likely the model that wrote a text finds it: what tells the best of several samples without a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.factories import named
from llmsearch_optuna.metrics.metric import Metric

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion


@named
def mean_logprob() -> Metric:
    """Return the mean log-probability of a completion's tokens under the model, before any parameter changes them.

    All generated tokens count, the ending one and those of a thought included. It compares texts of one model; between
    settings it says nothing of how good they are.
    """

    def function(
        predictions: Sequence[str], references: object, rows: object, completions: Sequence[Completion]
    ) -> list[float]:
        return [_known(completion.mean_logprob) for completion in completions]

    return Metric(
        name="mean_logprob",
        function=function,
        per_row=True,
        description={"built_in": "mean_logprob"},
        reads_completions=True,
        reads_logprobs=True,
    )


def _known(logprob: float | None) -> float:
    if logprob is None:
        raise InputError(
            "whatever decoded this text does not say how likely its tokens are; mean_logprob needs a model that is "
            "decoded here"
        )
    return logprob
