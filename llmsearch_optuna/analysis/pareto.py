"""The Pareto front of score and generated tokens: trials that no other one beats in both.

The scores on it are those of the search rows, where every point had its share of luck. Only the winner was looked at
on the holdout, so it is the only point with a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.trials import score_of, tokens_of
from llmsearch_optuna.types import Direction

if TYPE_CHECKING:
    from llmsearch_optuna.analysis.view import StudyView


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One trial of the front.

    Attributes:
        trial: Its number.
        score: On the search rows.
        tokens: Generated tokens a row.
        params: Everything that it decodes with.
        verdict: Its comparison with the baseline on the holdout; None for all points but the winner.
    """

    trial: int
    score: float
    tokens: float
    params: Mapping[str, Any]
    verdict: Verdict | None = None


def front_of(result: StudyView) -> list[FrontPoint]:
    """The front of a result, fewest tokens first.

    Raises:
        StudyError: The study has one objective.
    """
    if len(result.study.directions) == 1:
        raise StudyError(
            f"the study {result.study.study_name!r} has one objective; search with objectives=('score', 'tokens')"
        )
    winner = result.looks[-1].winner if result.looks else None
    return [
        FrontPoint(
            trial=t.number,
            score=t.values[0],
            tokens=t.values[1],
            params=result.trial_params(t.number),
            verdict=result.verdict if t.number == winner else None,
        )
        for t in front_trials(result.trials, result.direction)
    ]


def front_trials(trials: Sequence[FrozenTrial], direction: Direction) -> list[FrozenTrial]:
    """The complete trials that no other one beats, fewest tokens first; of equals the earliest."""
    sign = -1.0 if direction == "maximize" else 1.0
    complete = [t for t in trials if t.state is TrialState.COMPLETE and tokens_of(t) is not None]
    front: list[FrozenTrial] = []
    best = float("inf")
    for trial in sorted(complete, key=lambda t: (tokens_of(t) or 0.0, sign * (score_of(t) or 0.0), t.number)):
        loss = sign * (score_of(trial) or 0.0)
        if loss < best:
            front.append(trial)
            best = loss
    return front


def pick(front: Sequence[FrontPoint], max_tokens: float | None) -> FrontPoint:
    """The best score within a limit of generated tokens a row.

    Args:
        front: Fewest tokens first, so best score last.
        max_tokens: The limit; None for none.

    Raises:
        InputError: No point stays within the limit.
    """
    within = [point for point in front if max_tokens is None or point.tokens <= max_tokens]
    if within:
        return within[-1]
    if not front:
        raise InputError("no trial is complete, so there is nothing to pick from")
    shortest = front[0]
    raise InputError(
        f"max_tokens={max_tokens}: no trial writes so little; the shortest, trial {shortest.trial}, "
        f"takes {shortest.tokens:.4g} tokens a row"
    )
