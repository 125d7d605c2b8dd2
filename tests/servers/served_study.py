"""The demo's study, shortened, on a server: run whole, and run with the study and the server killed on the way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.demo.dialogues import demo_dialogues
from llmsearch_optuna.search_result import SearchResult
from tests.servers.server_process import ROOT, ServerProcess

ROWS = 20
TASK: dict[str, Any] = {
    "prompt": "Summarize the dialogue in one sentence.\n\n{dialogue}",
    "reference": "summary",
    "metric": "rouge1",
}


def dialogues(rows: int = ROWS) -> list[dict[str, str]]:
    """The shortest dialogues of the demo."""
    return sorted(demo_dialogues(), key=lambda row: len(row["dialogue"]))[:rows]


def study(url: str, folder: str, **changed: Any) -> SearchResult:
    """Baseline, greedy and a sampled configuration; its condition always holds."""
    arguments: dict[str, Any] = {
        "n_trials": 3,
        "constraints": {"tokens": "<= 8"},
        "storage": f"sqlite:///{folder}/s.db",
        "study_name": "s",
        "baseline": {"do_sample": True, "temperature": 2.0},  # which loses
        "holdout_replicates": 1,
        "skip_probe": True,
        "progress": False,
        "retry_for": 3.0,
    }
    space = {
        "max_new_tokens": 8,
        "do_sample": True,
        "temperature": FloatDistribution(0.1, 1.2),
        "top_p": FloatDistribution(0.5, 1.0),
    }
    return search(url, dialogues(), space, **TASK, **{**arguments, **changed})


def told(result: SearchResult) -> list[Any]:
    """What a study has found: trials, verdict, and every text that counts."""
    trials = [(t.number, t.state, t.value, t.params, t.user_attrs.get("rows")) for t in result.trials]
    texts = [
        result.completions(trial.number)[["row", "completion", "score"]].values.tolist() for trial in result.trials
    ]
    return [trials, result.verdict.to_json(), result.summary, texts]


def interrupted(server: ServerProcess, folder: Path, **changed: Any) -> SearchResult:
    """The study, whose process is killed on its way, then its server, which comes back twice; all by SIGKILL.

    Requests that a killed study leaves behind would run beside the next session's, so the server is killed with it.
    """
    first = _process(server.url, folder, changed)
    _wait_for_rows(first, folder, 6)
    first.kill()
    first.wait()
    server.kill()
    kept = rows_in(folder)
    server.start()
    second = _process(server.url, folder, changed)
    _wait_for_rows(second, folder, kept + 6)
    server.kill()
    _, said = second.communicate()
    assert second.returncode != 0
    assert "give the same command again when it is back" in said
    between = rows_in(folder)
    server.start()
    result = study(server.url, str(folder), **changed)
    assert kept < between < rows_in(folder)
    return result


def rows_in(folder: Path) -> int:
    """How many rows the study has stored."""
    try:
        with sqlite3.connect(folder / "s.db") as connection:
            return int(connection.execute("select count(*) from llmsearch_rows").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def _process(url: str, folder: Path, changed: dict[str, Any]) -> subprocess.Popen[str]:
    call = f"from tests.servers.served_study import study; study({url!r}, {str(folder)!r}, **{changed!r})"
    return subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def _wait_for_rows(process: subprocess.Popen[str], folder: Path, rows: int) -> None:
    until = time.monotonic() + 300
    while rows_in(folder) < rows:
        assert process.poll() is None, "the study has ended"
        assert time.monotonic() < until, "the study does not get on"
        time.sleep(0.05)
