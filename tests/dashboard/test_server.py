"""The server: our study is what it shows, and it listens on this machine only."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import threading
import urllib.request

import optuna
import pytest

from llmsearch_optuna import dashboard
from llmsearch_optuna.dashboard import server
from llmsearch_optuna.dashboard.notes_writer import describe_study
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.report import ReportData, TrialPoint
from llmsearch_optuna.storage.study import open_study

needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None, reason="needs the extra dashboard"
)
DATA = ReportData(
    study_name="s",
    metric="rouge1",
    verdict_sentence="No evidence so far",
    trials=(TrialPoint(number=0, state="complete", value=0.3, tokens=20.0, kind="greedy", rows=8),),
)


@pytest.fixture
def opened(tmp_path):
    found = open_study(f"sqlite:///{tmp_path}/s.db", "s", direction="maximize", fingerprint={})
    yield found
    found.close()


def test_without_the_package_it_says_how_to_get_it(opened, monkeypatch):
    monkeypatch.setattr(server, "is_installed", lambda: False)
    with pytest.raises(StudyError, match=r"pip install 'llmsearch-optuna\[dashboard\]'"):
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
    assert {re.sub("^llmsearch-", "", p["id"]) for p in detail["plotly_graph_objects"]} >= {"score_against_tokens"}


@needs_dashboard
def test_a_port_that_is_taken_is_named(opened):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=f"port {port} cannot be used"):
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
