"""What a study optimizes: the score alone, or the score and the tokens that it takes to get there.

Tokens are generated tokens a row, not seconds: rows that are replayed or share a batch make seconds meaningless.
The score always comes first; whatever asks for the score of a trial asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.ledger import RowRecord

Direction = Literal["maximize", "minimize"]
Objective = Literal["score", "tokens"]

TOKENS_LABEL = "generated tokens a row"
_ALLOWED: tuple[tuple[Objective, ...], ...] = (("score",), ("score", "tokens"))


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a trial is told with.

    Attributes:
        names: ``("score",)`` or ``("score", "tokens")``.
        direction: Of the score; tokens are minimized.
    """

    names: tuple[Objective, ...] = ("score",)
    direction: Direction = "maximize"

    @classmethod
    def of(cls, names: Any, direction: Direction) -> Objectives:
        """Check what a user gave.

        Raises:
            InputError: These are no objectives.
        """
        given = (names,) if isinstance(names, str) else tuple(names)
        found = next((allowed for allowed in _ALLOWED if given == allowed), None)
        if found is None:
            raise InputError(f"objectives={names!r} is unknown; give ('score',) or ('score', 'tokens')")
        return cls(found, direction)

    @property
    def is_single(self) -> bool:
        """Whether the score is all that counts."""
        return len(self.names) == 1

    @property
    def directions(self) -> list[Direction]:
        """One a value, as Optuna takes them."""
        return [self.direction, "minimize"][: len(self.names)]

    def labels(self, metric: str) -> list[str]:
        """One name a value, for people."""
        return [metric, TOKENS_LABEL][: len(self.names)]

    def values(self, score: float | None, records: Sequence[RowRecord]) -> list[float]:
        """What a complete trial is told with."""
        assert score is not None
        return [score, tokens_a_row(records)][: len(self.names)]


def direction_of(study: optuna.Study) -> Direction:
    """The direction of the score."""
    return "minimize" if study.directions[0] is StudyDirection.MINIMIZE else "maximize"


def tokens_a_row(records: Sequence[RowRecord]) -> float:
    """Generated tokens of the average row, all replicates counted alike; 0 where there are no rows."""
    return sum(len(r.token_ids) for r in records) / len(records) if records else 0.0


def score_of(trial: FrozenTrial) -> float | None:
    """The score that a trial ended with, whatever else it was told with; None where it has none."""
    return trial.values[0] if trial.values else None


def tokens_of(trial: FrozenTrial) -> float | None:
    """The generated tokens a row that a trial was told with; None where they were no objective."""
    return trial.values[1] if trial.values and len(trial.values) > 1 else None
