"""Notes and figures cost what is new in them, however many trials a study has."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from llmsearch_optuna.dashboard import StudyPageCallback, describe_all, notes_writer
from llmsearch_optuna.dashboard.notes_writer import describe_study
from llmsearch_optuna.dashboard.study_attributes import StudyAttributes, is_noted
from llmsearch_optuna.progress import StudyEnded, StudyStarted, TrialEnded
from llmsearch_optuna.report import ReportData
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.storage.study import OpenedStudy, open_study
from tests.dashboard.test_notes_writer import run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None, reason="needs the extra dashboard"
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenedStudy]:
    found = open_study(f"sqlite:///{tmp_path}/s.db", "s", direction="maximize", fingerprint={})
    for _ in range(6):
        found.study.tell(found.study.ask(), 0.5)
    yield found
    found.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often attributes of a study are read and written."""
    counted: Counter[str] = Counter()
    for name in ("get_study_system_attrs", "set_study_system_attr"):
        monkeypatch.setattr(RDBStorage, name, _counting(getattr(RDBStorage, name), name, counted))
    return counted


def _counting(method: Any, name: str, counted: Counter[str]) -> Any:
    def called(*args: Any) -> Any:
        counted[name] += 1
        return method(*args)

    return called


def test_notes_are_written_without_reading_those_of_all_trials_again(opened: OpenedStudy, calls: Counter[str]) -> None:
    import optuna_dashboard

    attributes = StudyAttributes(opened)
    for trial in opened.study.get_trials(deepcopy=False):
        optuna_dashboard.save_note(attributes.trial_of(trial), f"note {trial.number} " * 300)
    optuna_dashboard.save_note(attributes.trial(2), "a short one")
    assert calls["get_study_system_attrs"] == 1
    found = [optuna_dashboard.get_note(opened.trial(number)) for number in range(6)]
    assert found == [f"note {number} " * 300 if number != 2 else "a short one" for number in range(6)]


def test_a_note_that_somebody_edited_is_seen_by_the_next_reader(opened: OpenedStudy) -> None:
    import optuna_dashboard

    optuna_dashboard.save_note(StudyAttributes(opened).study, "ours")
    optuna_dashboard.save_note(opened.study, "edited")
    assert optuna_dashboard.get_note(StudyAttributes(opened).study) == "edited"


def test_a_page_that_has_not_changed_is_not_written_again(opened: OpenedStudy, calls: Counter[str]) -> None:
    data = ReportData(study_name="s", metric="m", verdict_sentence="so far", trials=())
    describe_study(StudyAttributes(opened).study, data)
    assert calls.pop("set_study_system_attr") > 0
    describe_study(StudyAttributes(opened).study, data)
    assert calls == {"get_study_system_attrs": 2}


def test_trials_of_a_search_are_known_to_have_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, n_trials=4)
    assert all(map(is_noted, result.trials))
    assert StudyAttributes(result.opened).page_state
    looked: list[int] = []
    monkeypatch.setattr(notes_writer, "collect", lambda result: looked.append(-1))
    monkeypatch.setattr(StudyAttributes, "trial_of", lambda self, trial: looked.append(trial.number))
    describe_all(SearchResult.of(result.opened))
    assert not looked
    result.opened.study.set_user_attr("power", "another sentence")
    with pytest.raises(AttributeError):  # the page is made again, of nothing
        describe_all(SearchResult.of(result.opened))
    assert looked == [-1]


def test_a_study_that_goes_on_gets_its_page_when_it_ends(opened: OpenedStudy) -> None:
    made: list[str] = []

    def result() -> Any:
        made.append("page")
        raise RuntimeError("not needed here")

    for finished in (0, 6):
        page = StudyPageCallback(result)
        page.on(StudyStarted(study_name="s", n_trials=9, finished_trials=finished, rows=8, storage="x"))
        page.on(TrialEnded(number=finished, state="complete", value=1.0))
        assert len(made) == (0 if finished else 1)
        page.on(StudyEnded(result_summary="over"))
        assert len(made) == (1 if finished else 2)
        made.clear()
    assert all(trial.state is TrialState.COMPLETE for trial in opened.study.trials)
