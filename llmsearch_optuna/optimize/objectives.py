"""What a study optimizes: the score alone, or the score and further means, such as the tokens that it takes.

Tokens are generated tokens a row, not seconds: rows that are replayed or share a batch make seconds meaningless.
The score always comes first; whatever asks for the score of a trial asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.optimize.measures import TOKENS, Measure
from llmsearch_optuna.storage.row_record import RowRecord, mean
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.types import Direction

SCORE = "score"
TOKENS_LABEL = "generated tokens a row"


@dataclass(frozen=True, slots=True)
class Objectives:
    """The values of a trial.

    Attributes:
        direction: Of the score. Tokens are minimized, other metrics maximized.
        further: What comes after the score.
    """

    direction: Direction = "maximize"
    further: tuple[Measure, ...] = ()

    @classmethod
    def of(
        cls,
        given: Any,
        direction: Direction,
        *,
        metric: str = SCORE,
        postprocess: Callable[[str], str] | None = None,
    ) -> Objectives:
        """Check what a user gave.

        Args:
            given: ``"score"`` or the study's metric, then ``"tokens"`` or anything that `Metric.of` takes.
            direction: Of the score.
            metric: The name of the study's metric.
            postprocess: Applied to every text before a metric sees it.

        Raises:
            InputError: These are no objectives.
        """
        words = (given,) if isinstance(given, str) else tuple(given)
        if not words or words[0] not in (SCORE, metric):
            raise InputError(
                f"objectives={short(given)} must begin with 'score', the study's metric; give ('score',), "
                "('score', 'tokens'), or ('score', 'json_valid') and other metrics by row"
            )
        try:
            further = tuple(Measure.of(word, postprocess) for word in words[1:])
        except InputError as problem:
            raise InputError(f"objectives={short(given)}: {problem}") from None
        names = [metric, *(measure.name for measure in further)]
        if len(set(names)) < len(names):
            raise InputError(f"objectives={short(given)} names one of them twice")
        return cls(direction, further)

    def checked(self, task: PreparedTask) -> Objectives:
        """Return them with their metrics tried on the first rows.

        Raises:
            InputError: A metric cannot be used on these rows, or scores all of them at once.
        """
        try:
            return replace(self, further=tuple(measure.checked(task) for measure in self.further))
        except InputError as problem:
            raise InputError(f"objectives: {problem}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """One a value; the score is ``"score"``, whatever its metric."""
        return (SCORE, *(measure.name for measure in self.further))

    @property
    def is_single(self) -> bool:
        """Whether the score is all that counts."""
        return not self.further

    @property
    def directions(self) -> list[Direction]:
        """One a value, as Optuna takes them."""
        return [self.direction, *(direction_of(measure.name) for measure in self.further)]

    @property
    def description(self) -> list[Any]:
        """How they count in a study's fingerprint."""
        return [SCORE, *(TOKENS if m.metric is None else m.description for m in self.further)]

    def values(self, score: float | None, records: Sequence[RowRecord], answers: Answers | None = None) -> list[float]:
        """The values of a complete trial.

        Args:
            score: Its score.
            records: Its rows.
            answers: The same as metrics take them; tokens need none.

        Raises:
            MetricError: A metric failed; names the row.
        """
        assert score is not None
        return [score, *(mean(measure.values(records, answers)) if records else 0.0 for measure in self.further)]


def direction_of(name: str) -> Direction:
    """The direction of an objective beside the score."""
    return "minimize" if name == TOKENS else "maximize"


def label(name: str) -> str:
    """What people call an objective beside the score."""
    return TOKENS_LABEL if name == TOKENS else name


def tokens_a_row(records: Sequence[RowRecord]) -> float:
    """Generated tokens of the average row, all replicates counted alike; 0 where there are no rows."""
    return sum(r.tokens for r in records) / len(records) if records else 0.0
