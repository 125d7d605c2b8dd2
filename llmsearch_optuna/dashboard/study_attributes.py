"""The attributes of a study, where optuna-dashboard keeps its notes and figures: read once, written where they change.

Notes of all trials are attributes of the study, and `optuna_dashboard.save_note` reads all of them each time. Through
this a note costs the same after thousands of trials as after the first.
"""

from __future__ import annotations

from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from llmsearch_optuna.storage.study import OpenedStudy

NOTED = "llmsearch:noted"
"""System attribute of trials that have a note."""
_PAGE = "llmsearch:page"


class StudyAttributes:
    """Optuna's storage of a study, as it was when it was first read and with what has been written through this.

    What other processes write meanwhile is not seen: keep it for notes that nobody else writes, or for a moment.

    Args:
        opened: The study.
    """

    def __init__(self, opened: OpenedStudy) -> None:
        self._storage = opened.rdb
        self._study_id = opened.rdb.get_study_id_from_name(opened.name)
        self._known = opened.rdb.get_study_system_attrs(self._study_id)
        self._trials: dict[int, FrozenTrial] = {}
        self.study = optuna.load_study(
            study_name=opened.name,
            storage=cast(BaseStorage, self),
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.NopPruner(),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes without asking the database."""
        return dict(self._known)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute, unless it has this value already."""
        if key not in self._known or self._known[key] != value:
            self._storage.set_study_system_attr(study_id, key, value)
            self._known[key] = value

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; one that was given to `trial_of` as it was given."""
        return self._trials[trial_id] if trial_id in self._trials else self._storage.get_trial(trial_id)

    @property
    def page_state(self) -> str | None:
        """What the study's page shows, as a hash; None where there is no page."""
        found = self._known.get(_PAGE)
        return None if found is None else str(found)

    @page_state.setter
    def page_state(self, state: str) -> None:
        self.set_study_system_attr(self._study_id, _PAGE, state)

    def trial(self, number: int) -> optuna.Trial:
        """Return a trial that notes can be written to."""
        return optuna.Trial(self.study, self._trial_id(number))

    def trial_of(self, trial: FrozenTrial) -> optuna.Trial:
        """Return the same from what is known of it already."""
        trial_id = self._trial_id(trial.number)
        self._trials[trial_id] = trial
        return optuna.Trial(self.study, trial_id)

    def mark_noted(self, number: int) -> None:
        """Remember with a trial that has not ended that it has a note; see `is_noted`."""
        self._storage.set_trial_system_attr(self._trial_id(number), NOTED, True)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def is_noted(trial: FrozenTrial) -> bool:
    """Whether a trial is known to have a note, without reading the notes of all."""
    return NOTED in trial.system_attrs
