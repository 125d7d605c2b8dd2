"""What is measured of a row beside the score: another metric, or the generated tokens.

Conditions and further objectives are made of it. What it needs of a row follows from the row's completion, so that
nothing of it is stored by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.task.prepared_task import PreparedTask

TOKENS = "tokens"
"""The generated tokens of a row, all its samples together."""


@dataclass(frozen=True)
class Measure:
    """One number a row.

    Attributes:
        name: The metric's, or ``"tokens"``.
        metric: Scores by row; None for tokens.
    """

    name: str
    metric: Metric | None = None

    @classmethod
    def of(cls, what: Any, postprocess: Callable[[str], str] | None = None) -> Measure:
        """Return what a user's word stands for.

        Args:
            what: ``"tokens"``, or anything that `Metric.of` takes.
            postprocess: Applied to every text before a metric sees it.

        Raises:
            InputError: There is no such metric.
        """
        if isinstance(what, str) and what == TOKENS:
            return cls(TOKENS)
        metric = Metric.of(what)
        if metric.reads_logprobs:
            raise InputError(
                f"{metric.name} tells which of several samples the model finds likelier, and says nothing between "
                "settings; give it as scorer= with aggregate='best'"
            )
        return cls(metric.name, metric if postprocess is None else metric.after(postprocess))

    def checked(self, task: PreparedTask) -> Measure:
        """Return it with its metric tried on the first rows.

        Raises:
            InputError: It cannot be used on these rows, or scores all of them at once.
        """
        if self.metric is None:
            return self
        metric = self.metric.check(task.references, task.rows)
        if metric.per_row is False:
            raise InputError(f"{self.name} scores all rows at once; one score a row is needed here")
        return replace(self, metric=metric)

    @property
    def description(self) -> dict[str, Any]:
        """How it counts in a study's fingerprint."""
        return {"name": self.name, **({} if self.metric is None else self.metric.description)}

    def values(self, records: Sequence[RowRecord], answers: Answers | None) -> list[float]:
        """One value a record: the tokens of all its samples, the mean of a metric over them.

        Args:
            records: Decoded rows.
            answers: The same as metrics take them; tokens need none.

        Raises:
            MetricError: The metric failed; names the row.
        """
        if self.metric is None:
            return [float(record.tokens) for record in records]
        assert answers is not None
        return self.metric.scores_of(answers)
