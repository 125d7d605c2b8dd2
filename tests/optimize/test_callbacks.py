"""The study file is in its study from the start, and a study that is refused keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsearch_optuna.optimize.callbacks import StudyFileKeeper
from llmsearch_optuna.progress import StudyEnded, StudyStarted, TrialEnded
from llmsearch_optuna.search_result import load_result
from tests.optimize.test_run import Recorder, run

STARTED = StudyStarted(study_name="study", n_trials=2, finished_trials=2, rows=28, storage="")
TRIAL_ENDED = TrialEnded(number=1, state="complete", value=0.5)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(run(tmp_path, n_trials=2).opened.path)


def kept(storage: str) -> str | None:
    return load_result(storage).study.user_attrs.get("study_file")


def test_a_study_without_one_gets_it_when_it_starts(storage: str) -> None:
    told = Recorder()
    StudyFileKeeper(told, storage, "study", "first").on(STARTED)
    assert kept(storage) == "first"
    assert told.events == [STARTED]


@pytest.mark.parametrize("accepted", [TRIAL_ENDED, StudyEnded()])
def test_a_study_that_has_another_gets_it_once_it_is_known_to_go_on(
    storage: str, accepted: TrialEnded | StudyEnded
) -> None:
    StudyFileKeeper(Recorder(), storage, "study", "first").on(STARTED)
    keeper = StudyFileKeeper(Recorder(), storage, "study", "second")
    keeper.on(STARTED)
    assert kept(storage) == "first"
    keeper.on(accepted)
    assert kept(storage) == "second"
