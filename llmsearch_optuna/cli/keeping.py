"""Keeps a study file in its study from the start, so that one that is killed can be handed on and gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import optuna

from llmsearch_optuna.database.problems import storage_errors
from llmsearch_optuna.progress import Event, Observer, StudyEnded, StudyStarted, TrialEnded
from llmsearch_optuna.report.collect import STUDY_FILE_ATTRIBUTE
from llmsearch_optuna.storage import read_study


@dataclass
class StudyFileKeeper:
    """Passes events on, and stores the study file's text in the study.

    A study that has none gets it at once. One that has another gets it with the first trial that ends: workers refuse
    a study that was started with something else only after its start was told, and then the old text must stay.

    Attributes:
        observer: Is told.
        storage: Where the study is, as the study file says it: what events say of it lacks the password.
        study_name: Its name there.
        text: What is stored.
    """

    observer: Observer
    storage: str | None
    study_name: str
    text: str
    _is_stored: bool = False

    def on(self, event: Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if self._is_stored:
            return
        if isinstance(event, StudyStarted):
            with self._study() as study:
                if STUDY_FILE_ATTRIBUTE not in study.user_attrs:
                    self._store(study)
        elif isinstance(event, TrialEnded | StudyEnded):
            with self._study() as study:
                self._store(study)

    def _store(self, study: optuna.Study) -> None:
        study.set_user_attr(STUDY_FILE_ATTRIBUTE, self.text)
        self._is_stored = True

    @contextlib.contextmanager
    def _study(self) -> Iterator[optuna.Study]:
        opened = read_study(self.storage, self.study_name)
        with contextlib.closing(opened), storage_errors(opened.engine.url):
            yield opened.study
