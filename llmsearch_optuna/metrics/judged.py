"""The metric that a judge makes: its score by row, what is known of its noise, and what people say of some answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.checks import is_number
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.preflight import Preflight

Label: TypeAlias = tuple[Any, float]
"""An answer's text, or ``(row, text)``, and the score that a person gave it."""


class Judgements(Protocol):
    """What a judge has said so far."""

    @property
    def backend(self) -> object:
        """What it decodes with."""
        ...

    def variance_of(self, answers: Collection[str]) -> float | None:
        """Of a single judgement among the repeats of one text; None where most of these were not judged several times.

        Args:
            answers: Texts.
        """
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many judgements were asked for, remembered, and unreadable."""
        ...


@dataclass(frozen=True)
class HumanLabels:
    """Scores that people gave, by answer.

    Attributes:
        scores: ``(row, text)`` -> score; the row is None for a text in any row.
    """

    scores: Mapping[tuple[int | None, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Iterable[Label], scale: tuple[float, float]) -> HumanLabels:
        """Check what a user gave.

        Raises:
            InputError: A label is no pair, or its score is outside the judge's scale.
        """
        found: dict[tuple[int | None, str], float] = {}
        for label in labels:
            if not isinstance(label, Sequence) or isinstance(label, str) or len(label) != 2:
                raise InputError(f"the label {short(label)} must be a pair: an answer (or its row and it) and a score")
            answer, score = label
            row, text = answer if isinstance(answer, tuple | list) and len(answer) == 2 else (None, answer)
            if not isinstance(text, str) or not isinstance(row, int | None):
                raise InputError(f"the label {short(label)} must name an answer's text, or its row and its text")
            if not is_number(score) or not scale[0] <= float(score) <= scale[1]:
                raise InputError(f"the label {short(label)} must have a score from {scale[0]:g} to {scale[1]:g}")
            found[row, text] = float(score)
        return cls(found)

    def of_row(self, row: int, texts: Sequence[str]) -> float | None:
        """The mean score of these answers to a row; None where one of them has none."""
        scores = [self.scores.get((row, text), self.scores.get((None, text))) for text in texts]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(scores) else None


@dataclass(frozen=True, kw_only=True)
class JudgedMetric(Metric):
    """A metric by row whose scores are a judge's.

    Attributes:
        judgements: What the judge has said so far.
        repeats: Judgements whose mean is a text's score.
        labels: What people say.
        maker: Makes it in another process; None where its model is an object of this one.
    """

    judgements: Judgements = field(repr=False, compare=False)
    repeats: int = 1
    labels: HumanLabels = field(default_factory=HumanLabels, repr=False, compare=False)
    maker: Callable[[], JudgedMetric] | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process make its own judge."""
        if self.maker is None:
            raise InputError(
                f"the judge {self.name!r} cannot go to another process, since its model is an object; give judge() the "
                "model's name or address"
            )
        return _made_again, (self.maker, self.name, self.bounds)

    def checked(self, tried: Preflight) -> Metric:
        """Return the metric, tried on the first rows; a judge's higher score is the better one, whatever it says."""
        return replace(tried, direction=tried.direction or "maximize").check(self)


def _made_again(maker: Callable[[], JudgedMetric], name: str, bounds: tuple[float, float]) -> JudgedMetric:
    return replace(maker(), name=name, bounds=bounds)
