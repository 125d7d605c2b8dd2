"""A study file whose model is a server, and the commands that decode its locked rows once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.server_process import ROOT

STUDY_FILE = """\
[study]
name = "served"
n_trials = 3
storage = "sqlite:///served.db"
holdout = 0.3
holdout_replicates = 1

[model]
server = "{url}"
skip_probe = true

[data]
path = "rows.jsonl"
prompt = "Summarize the dialogue in one sentence.\\n\\n{{dialogue}}"
reference = "summary"
metric = "rouge1"

[baseline]
max_new_tokens = 1

[space]
max_new_tokens = 6
do_sample = true
temperature = 0.3
"""


def write_study_file(folder: Path, url: str, rows: list[dict[str, str]]) -> None:
    """Write `study.toml` and its rows."""
    (folder / "study.toml").write_text(STUDY_FILE.format(url=url), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run llmsearch-optuna in a folder, as its user does."""
    return subprocess.run(
        [sys.executable, "-m", "llmsearch_optuna", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def confirmed(folder: Path, *arguments: str) -> dict[str, Any]:
    """What `confirm --json` finds."""
    done = command(folder, "confirm", "served.db", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def checked(folder: Path, *arguments: str, margin: str = "0.01") -> tuple[int, dict[str, Any]]:
    """The exit code of `check --margin`, and what it finds."""
    done = command(folder, "check", "served.db", "--margin", margin, *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)
