"""What a study's page in optuna-dashboard gets: names, notes and figures, while it runs and afterwards."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from llmsearch_optuna.api import search
from llmsearch_optuna.dashboard import notes_writer
from llmsearch_optuna.dashboard.notes_writer import StudyPageCallback, describe_all, describe_study
from llmsearch_optuna.progress import StudyStarted
from llmsearch_optuna.report import ReportData, TrialPoint
from llmsearch_optuna.storage.study import open_study
from tests.synthetic import TextEngine, dataset, number_metric

needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None, reason="needs the extra dashboard"
)
DATA = ReportData(
    study_name="s",
    metric="rouge1",
    verdict_sentence="No evidence <script>alert(1)</script> [link](http://x) *so far*",
    trials=(TrialPoint(number=0, state="complete", value=0.3, tokens=20.0, kind="greedy", rows=8),),
    model="m_1",
    dataset="d",
    rows=8,
    best_number=0,
    recommended_params={"stop": ["```", "</code>"]},
)


@pytest.fixture
def opened(tmp_path):
    found = open_study(f"sqlite:///{tmp_path}/s.db", "s", direction="maximize", fingerprint={})
    yield found
    found.close()


@needs_dashboard
def test_describe_study_replaces_our_note_and_leaves_a_users_own(opened):
    import optuna_dashboard

    describe_study(opened.study, DATA)
    assert "No evidence" in optuna_dashboard.get_note(opened.study)
    describe_study(opened.study, replace(DATA, verdict_sentence="Better"))
    assert "**Better**" in optuna_dashboard.get_note(opened.study)
    optuna_dashboard.save_note(opened.study, "mine")
    describe_study(opened.study, DATA)
    assert optuna_dashboard.get_note(opened.study) == "mine"


def test_describe_study_without_the_package_does_nothing(opened, monkeypatch):
    monkeypatch.setattr(notes_writer, "is_installed", lambda: False)
    describe_study(opened.study, DATA)
    assert opened.study.metric_names is None


class TextsEngine(TextEngine):
    """Puts a word into its completions that nothing else holds."""

    def complete(self, prompt, params):
        made = super().complete(prompt, params)
        return replace(made, text=f"{made.text} quokka")


def first_number(predictions, references):
    return number_metric([p.split()[0] for p in predictions], references)


first_number.bounds = (0.0, 1.0)


def run(folder, *, n_trials=12):
    return search(
        TextsEngine(),
        dataset(40),
        {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        holdout=0.3,
        reference="answer",
        metric=first_number,
        n_trials=n_trials,
        storage=f"sqlite:///{folder}/s.db",
        study_name="s",
        progress=False,
    )


@needs_dashboard
def test_a_search_leaves_a_page_that_can_be_read(tmp_path):
    """Objective, study note, one note and one table a trial, our figures; texts stay out of the user attributes."""
    import optuna_dashboard

    result = run(tmp_path)
    assert result.study.metric_names == ["first_number"]
    note = optuna_dashboard.get_note(result.study)
    for fact in ("TextsEngine", "fingerprint", "row "):
        assert fact in note
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    for trial in result.trials:
        shown = optuna_dashboard.get_note(result.opened.trial(trial.number))
        assert shown.startswith(f"**{states[trial.state]}")
        assert len(re.findall(r"^\| \d+ \| [\d.]+ \|", shown, re.MULTILINE)) == 6
        assert "quokka" in shown
        assert len(get_all_artifact_meta(trial, storage=result.opened.rdb)) == 1
        assert "quokka" not in json.dumps(trial.user_attrs)
        assert {"kind", "tokens", "seconds", "rows", "memory"} <= trial.user_attrs.keys()
        assert trial.user_attrs["memory"].endswith(" GB")
    (summary,) = result.opened.rdb.get_all_studies()
    figures = {key.split(":")[2] for key in summary.system_attrs if key.startswith("dashboard:plot_data:")}
    assert {"llmsearch-score_against_tokens", "llmsearch-rows_done"} <= figures


@needs_dashboard
def test_notes_that_are_missing_are_made_later_and_others_are_left(tmp_path, monkeypatch):
    import optuna_dashboard

    with monkeypatch.context() as without:
        without.setattr(notes_writer, "is_installed", lambda: False)
        result = run(tmp_path, n_trials=4)
    assert optuna_dashboard.get_note(result.study) == ""
    optuna_dashboard.save_note(result.opened.trial(1), "mine")
    describe_all(result)
    notes = [optuna_dashboard.get_note(result.opened.trial(n)) for n in range(4)]
    assert notes[1] == "mine"
    assert notes[0].startswith(f"**complete, {result.trials[0].value:.4f}")
    assert "Worst rows" in notes[0]
    assert notes[0] == _as_in_a_search(tmp_path / "again", number=0)


def _as_in_a_search(folder, number):
    import optuna_dashboard

    folder.mkdir()
    return optuna_dashboard.get_note(run(folder, n_trials=4).opened.trial(number))


@needs_dashboard
def test_a_page_that_cannot_be_refreshed_ends_no_study(caplog):
    def broken():
        raise RuntimeError("no disk")

    StudyPageCallback(broken).on(StudyStarted(study_name="s", n_trials=1, finished_trials=0, rows=8, storage="x"))
    assert "no disk" in caplog.text


def test_refreshes_take_a_small_share_of_the_time(monkeypatch):
    """However long one takes, and however fast trials end."""
    from llmsearch_optuna.progress import TrialEnded

    clock, calls = [0.0], []

    def slow(self):
        calls.append(clock[0])
        clock[0] += 2.0
        raise RuntimeError("not needed here")

    monkeypatch.setattr(notes_writer, "is_installed", lambda: True)
    monkeypatch.setattr(notes_writer.time, "monotonic", lambda: clock[0])
    page = StudyPageCallback(lambda: slow(None))
    for _ in range(1000):
        clock[0] += 1.0
        page.on(TrialEnded(number=0, state="complete", value=1.0))
    assert 3 <= len(calls) <= 6
