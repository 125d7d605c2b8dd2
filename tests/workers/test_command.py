"""`run --workers`, with a real model, as a user starts and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import search
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.parse import read_study_file
from tests.faults.test_kill import signature, wait_for
from tests.postgres import empty_database, server

pytestmark = pytest.mark.faults

TRIALS = 12

STUDY = f"""\
[study]
name = "tiny"
n_trials = {TRIALS}
holdout = 0.3

[model]
name = "model"

[data]
path = "rows.jsonl"
prompt = "Ask: {{question}}"
reference = "answer"
metric = "f1"

[space]
max_new_tokens = 24
do_sample = true
temperature = {{low = 0.1, high = 2.0}}
top_p = {{low = 0.5, high = 1.0}}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "study.toml").write_text(STUDY)
    rows = [{"question": f"does train {i} leave at {i % 12}?", "answer": f"at {i % 12}"} for i in range(24)]
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
    return counted(folder, "SELECT COUNT(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')")


def has_study_file(folder: Path) -> bool:
    """Whether the parent has written what it writes; a worker suspended in a commit would let it wait for a minute."""
    return bool(counted(folder, "SELECT COUNT(*) FROM study_user_attributes WHERE key = 'study_file'"))


def counted(folder: Path, query: str) -> int:
    """Counted without the library, which would compete with the workers for the processor."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/studies/tiny.db?mode=ro", uri=True)) as database:
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def workers_of(program: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its workers; what Python itself runs beside them, to clean up after all, is none."""
    found = []
    for child in psutil.Process(program.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def suspend(process: psutil.Process) -> None:
    """Stop all of its threads; a signal that comes before the last one has stopped would still be taken."""
    process.suspend()
    tasks = Path(f"/proc/{process.pid}/task")
    wait_for(lambda: all(_of_status(task, "State").startswith("T") for task in tasks.iterdir()))


def was_told_to_end(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that is suspended."""
    pending = int(_of_status(Path(f"/proc/{process.pid}"), "ShdPnd"), 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


def _of_status(task: Path, name: str) -> str:
    (value,) = re.findall(rf"^{name}:\s*(.+)$", (task / "status").read_text(), re.MULTILINE)
    return str(value)


def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on_to_the_study_of_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = command(folder, "--workers", "2")
    wait_for(lambda: trials_ended(folder) >= 3 and has_study_file(folder), 200)
    workers = workers_of(program)
    assert len(workers) == 2
    # Suspended, they cannot be done before they are told to end.
    for worker in workers:
        suspend(worker)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of them
    wait_for(lambda: all(map(was_told_to_end, workers)))
    for worker in workers:
        worker.resume()
    _, said = program.communicate(timeout=60)
    assert "is killed" not in said
    assert not [worker for worker in workers if worker.is_running()]
    assert program.returncode == 130, said
    assert "Run the same command again to go on." in said.splitlines()[-1]
    assert "Traceback" not in said
    safe = trials_ended(folder)
    assert 3 <= safe < TRIALS
    _, said = command(folder, "--workers", "2").communicate(timeout=200)
    assert f"{safe} trials are there already" in said
    monkeypatch.chdir(folder)
    alone = search(**search_arguments(Changes(name="alone").apply(read_study_file("study.toml"))), progress=False)
    assert signature(load_result("studies/tiny.db")) == signature(alone)


def test_ctrl_c_while_the_workers_start_ends_them_at_once(folder: Path) -> None:
    program = command(folder, "--workers", "2")
    wait_for(lambda: bool(workers_of(program)), 200)
    workers = workers_of(program)
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 130, said
    assert "Run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "is killed" not in said
    assert not [worker for worker in workers if worker.is_running()]
    assert trials_ended(folder) == 0


def test_workers_on_postgres_make_the_study_that_one_process_makes_on_sqlite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as url:
        storage = empty_database(url)
        program = command(folder, "--workers", "2", "--storage", storage)
        _, said = program.communicate(timeout=200)
        assert program.returncode == 0, said
        monkeypatch.chdir(folder)
        alone = search(**search_arguments(read_study_file("study.toml")), progress=False)
        assert signature(load_result(storage)) == signature(alone)


def test_what_cannot_be_done_is_said_once_without_a_traceback(folder: Path) -> None:
    (folder / "study.toml").write_text(STUDY.replace("{question}", "{query}"))
    program = command(folder, "--workers", "2")
    _, said = program.communicate(timeout=120)
    assert program.returncode == 1
    (error,) = said.split("error: ")[1:]
    assert "query" in error
    assert "Traceback" not in said
