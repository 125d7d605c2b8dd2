"""Trials for a sampler of Optuna to look at, without a copy of each in a study of its own."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

BEFORE_ALL = 2**31
"""Seen trials are numbered from minus this: those of the study itself, from 0, come after them."""


class SeenTrials(optuna.storages.InMemoryStorage):
    """Trials of one study in memory, after others that are shown as they are: none is copied, none can be changed.

    Args:
        seen: In the order of their numbers, which are below 0.
    """

    def __init__(self, seen: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._seen = seen

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return those that are seen, then the study's own."""
        seen = [trial for trial in self._seen if states is None or trial.state in states]
        own = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return (copy.deepcopy(seen) if deepcopy else seen) + own
