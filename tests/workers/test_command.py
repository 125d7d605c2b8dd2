"""`run --workers`, with a real model, as a user starts and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.result import load_result
from llmsearch_optuna.search import search
from llmsearch_optuna.study_file import Changes, read_study_file, search_arguments
from tests.faults.test_kill import signature, wait_for

# slow: they depend on how fast processes end, which a busy machine does not keep to; `make test-all` runs them.
pytestmark = [pytest.mark.faults, pytest.mark.slow]

STUDY = """\
[study]
name = "tiny"
n_trials = 24

[model]
name = "model"

[data]
path = "rows.jsonl"
prompt = "Ask: {question}"
reference = "answer"
metric = "f1"

[space]
max_new_tokens = 48
do_sample = true
temperature = {low = 0.1, high = 2.0}
top_p = {low = 0.5, high = 1.0}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "study.toml").write_text(STUDY)
    rows = [{"question": f"does train {i} leave at {i % 12}?", "answer": f"at {i % 12}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The program in a process group of its own, as a terminal starts it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-m", "llmsearch_optuna", "run", "study.toml", *more],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials_ended(folder: Path) -> int:
    """Counted without the library, which would compete with the workers for the processor."""
    time.sleep(0.2)
    query = "SELECT COUNT(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/studies/tiny.db?mode=ro", uri=True)) as database:
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on_to_the_study_of_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = command(folder, "--workers", "2")
    wait_for(lambda: trials_ended(folder) >= 3, 120)
    group = [p for p in psutil.process_iter() if _group(p) == program.pid]
    assert len(group) >= 3
    begun = time.monotonic()
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=30)
    assert time.monotonic() - begun < 15
    assert program.returncode == 130, said
    assert "Run the same command again to go on." in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not [p for p in group if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    safe = trials_ended(folder)
    assert 3 <= safe < 24
    _, said = command(folder, "--workers", "2").communicate(timeout=200)
    assert f"{safe} trials are there already" in said
    monkeypatch.chdir(folder)
    alone = search(**search_arguments(Changes(name="alone").apply(read_study_file("study.toml"))), progress=False)
    assert signature(load_result("studies/tiny.db")) == signature(alone)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


def test_what_cannot_be_done_is_said_once_without_a_traceback(folder: Path) -> None:
    (folder / "study.toml").write_text(STUDY.replace("{question}", "{query}"))
    program = command(folder, "--workers", "2")
    _, said = program.communicate(timeout=120)
    assert program.returncode == 1
    (error,) = said.split("error: ")[1:]
    assert "query" in error
    assert "Traceback" not in said
