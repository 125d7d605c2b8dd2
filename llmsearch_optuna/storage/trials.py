"""Parameters, score, tokens and rows of Optuna's trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.types import Direction

HALF = "half"
"""The attribute of a trial that was run on one half of the rows, 0 or 1: see `search`, ``holdout="cross"``."""


def half_of(trial: FrozenTrial) -> int | None:
    """Which half of the rows a trial was run on; None where it was run on all search rows."""
    found = trial.user_attrs.get(HALF)
    return None if found is None else int(found)


def rows_asked(trial: FrozenTrial, settings: Mapping[str, Any]) -> int:
    """How many search rows a trial is to be run on.

    Args:
        trial: Of a study.
        settings: The study's, see `StudyRecords.settings`.
    """
    half = half_of(trial)
    return int(settings["rows"]["search"]) if half is None else len(settings["halves"][half])


def params_of(trial: FrozenTrial) -> GenerationParams:
    """How a trial that was not refused decodes."""
    return GenerationParams.from_json(json.dumps(trial.user_attrs["params"]))


def best_complete(trials: Sequence[FrozenTrial], direction: str) -> FrozenTrial | None:
    """The complete trial with the best score among those that are feasible; the earliest of equals."""
    complete = [t for t in trials if t.state is TrialState.COMPLETE and score_of(t) is not None and is_feasible(t)]
    sign = -1.0 if direction == "maximize" else 1.0
    return min(complete, key=lambda t: (sign * (score_of(t) or 0.0), t.number), default=None)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all conditions of its study by the bound of its rows; True where there are none."""
    return all(violation <= 0 for violation in trial.constraints.values())


def nearest(trials: Sequence[FrozenTrial], limits: Mapping[str, float]) -> FrozenTrial | None:
    """The complete trial that breaks its conditions by least, each in units of its limit; the earliest of equals.

    Args:
        trials: Of the study.
        limits: Name of a condition -> number that its mean has to keep.
    """

    def distance(trial: FrozenTrial) -> float:
        return sum(max(0.0, v) / max(abs(limits.get(name, 1.0)), 1e-9) for name, v in trial.constraints.items())

    complete = [t for t in trials if t.state is TrialState.COMPLETE and score_of(t) is not None]
    return min(complete, key=lambda t: (distance(t), t.number), default=None)


def rows_counted(trial: FrozenTrial) -> int:
    """How many rows of the permutation count for a trial that has ended: those of its last pruning step."""
    return int(str(trial.user_attrs.get("rows", 0)).split()[0])


def direction_of(study: optuna.Study) -> Direction:
    """The direction of the score."""
    return "minimize" if study.directions[0] is StudyDirection.MINIMIZE else "maximize"


def score_of(trial: FrozenTrial) -> float | None:
    """The score that a trial ended with, None where it has none."""
    return trial.values[0] if trial.values else None
