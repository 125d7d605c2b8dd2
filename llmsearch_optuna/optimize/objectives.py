"""What a study optimizes: the score alone, or the score and the tokens that it takes to get there.

Tokens are generated tokens a row, not seconds: rows that are replayed or share a batch make seconds meaningless.
The score always comes first; whatever asks for the score of a trial asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.storage.records import RowRecord
from llmsearch_optuna.types import Direction

Objective = Literal["score", "tokens"]

TOKENS_LABEL = "generated tokens a row"
_ALLOWED: tuple[tuple[Objective, ...], ...] = (("score",), ("score", "tokens"))


@dataclass(frozen=True, slots=True)
class Objectives:
    """The values of a trial.

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
        """The values of a complete trial."""
        assert score is not None
        return [score, tokens_a_row(records)][: len(self.names)]


def tokens_a_row(records: Sequence[RowRecord]) -> float:
    """Generated tokens of the average row, all replicates counted alike; 0 where there are no rows."""
    return sum(len(r.token_ids) for r in records) / len(records) if records else 0.0
