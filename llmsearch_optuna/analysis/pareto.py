"""The Pareto front of several objectives, such as score and generated tokens: trials that no other one beats in all.

The scores on it are those of the search rows, where every point had its share of luck. Only the winner was looked at
on the holdout, so it is the only point with a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.objectives import tokens_a_row
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.trials import is_feasible
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
        values: All objectives by name; the score is ``"score"``.
        verdict: Its comparison with the baseline on the holdout; None for all points but the winner.
    """

    trial: int
    score: float
    tokens: float
    params: Mapping[str, Any]
    values: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None


def front_of(result: StudyView) -> list[FrontPoint]:
    """The front of a result, worst score first; with two objectives, therefore, the best of the other one first.

    Raises:
        StudyError: The study has one objective.
    """
    if len(result.study.directions) == 1:
        raise StudyError(
            f"the study {result.study.study_name!r} has one objective; search with objectives=('score', 'tokens')"
        )
    winner = result.looks[-1].winner if result.looks else None
    names = result.objective_names
    directions: list[Direction] = ["minimize" if d.name == "MINIMIZE" else "maximize" for d in result.study.directions]
    points = []
    for t in front_trials(result.trials, directions):
        values = dict(zip(names, t.values, strict=True))
        tokens = values["tokens"] if "tokens" in values else tokens_a_row(result.records(t.number))
        points.append(
            FrontPoint(
                trial=t.number,
                score=t.values[0],
                tokens=tokens,
                params=result.trial_params(t.number),
                values=values,
                verdict=result.verdict if t.number == winner else None,
            )
        )
    return points


def front_trials(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> list[FrozenTrial]:
    """The complete, feasible trials that no other one beats, worst score first; of equals the earliest.

    Args:
        trials: Of the study.
        directions: One an objective.
    """
    complete = [t for t in trials if t.state is TrialState.COMPLETE and t.values is not None and is_feasible(t)]
    if not complete:
        return []
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    losses = np.array([t.values for t in complete]) * signs  # [trials, objectives]
    no_worse = (losses[:, None] <= losses[None]).all(axis=2)  # [i, j]: i is nowhere worse than j
    better = no_worse & (losses[:, None] < losses[None]).any(axis=2)
    earlier = no_worse & no_worse.T & (np.arange(len(complete))[:, None] < np.arange(len(complete)))
    kept = np.flatnonzero(~(better | earlier).any(axis=0))
    return [complete[i] for i in sorted(kept, key=lambda i: (-losses[i, 0], complete[i].number))]


def pick(front: Sequence[FrontPoint], max_tokens: float | None) -> FrontPoint:
    """The best score within a limit of generated tokens a row.

    Args:
        front: Best score last.
        max_tokens: The limit; None for none.

    Raises:
        InputError: No point stays within the limit.
    """
    within = [point for point in front if max_tokens is None or point.tokens <= max_tokens]
    if within:
        return within[-1]
    if not front:
        raise InputError("no trial is complete, so there is nothing to pick from")
    shortest = min(front, key=lambda point: point.tokens)
    raise InputError(
        f"max_tokens={max_tokens}: no trial writes so little; the shortest, trial {shortest.trial}, "
        f"takes {shortest.tokens:.4g} tokens a row"
    )
