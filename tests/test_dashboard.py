"""The study in optuna-dashboard: note, objective name, figures; texts are shown and not obeyed; only this machine."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import threading
import urllib.request
from dataclasses import replace

import optuna
import pytest

from llmsearch_optuna import dashboard
from llmsearch_optuna.dashboard import describe_study, fenced, study_note
from llmsearch_optuna.report import ReportData, TrialPoint
from llmsearch_optuna.storage import open_study

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


def test_note_escapes_markup_and_fences_what_has_fences():
    note = study_note(DATA)
    assert r"\<script\>" in note
    assert r"\[link\]" in note
    assert r"m\_1" in note
    assert fenced("a```b").startswith("````\n")
    assert '\n````\n{\n  "stop"' in note


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
    monkeypatch.setattr(dashboard, "is_installed", lambda: False)
    describe_study(opened.study, DATA)
    with pytest.raises(dashboard.StudyError, match=r"pip install 'llmsearch-optuna\[dashboard\]'"):
        dashboard.serve(opened)


@needs_dashboard
def test_the_dashboard_serves_the_study_on_this_machine_only(opened, monkeypatch):
    """The real server answers, with the objective's name, the note and our figures in what it serves."""
    describe_study(opened.study, DATA)
    opened.study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.COMPLETE, value=0.3))
    port = free_port()
    hosts = []
    import optuna_dashboard

    real = optuna_dashboard.run_server
    monkeypatch.setattr(optuna_dashboard, "run_server", lambda *a, **k: (hosts.append(k["host"]), real(*a, **k)))
    threading.Thread(target=dashboard.serve, args=(opened,), kwargs={"port": port}, daemon=True).start()
    study_id = json.loads(get(f"http://127.0.0.1:{port}/api/studies"))["study_summaries"][0]["study_id"]
    detail = json.loads(get(f"http://127.0.0.1:{port}/api/studies/{study_id}?after=0"))
    assert hosts == ["127.0.0.1"]
    assert (detail.get("metric_names") or detail["objective_names"]) == ["rouge1"]
    assert "No evidence" in detail["note"]["body"]
    assert {re.sub("^llmsearch-", "", p["id"]) for p in detail["plotly_graph_objects"]} >= {"rows_done"}


@needs_dashboard
def test_a_port_that_is_taken_is_named(opened):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(dashboard.StudyError, match=f"port {port} cannot be used"):
            dashboard.serve(opened, port=port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> bytes:
    """The answer, as soon as the server is up."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except ConnectionRefusedError:
            pass
        except OSError as problem:
            if not isinstance(getattr(problem, "reason", None), ConnectionRefusedError):
                raise
        threading.Event().wait(0.1)
    raise AssertionError("the dashboard did not come up")
