"""Disks that fill up, folders that cannot be written, databases that are locked for a while."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.result import load_result
from tests.faults.study_child import run
from tests.faults.test_kill import signature, wait_for
from tests.postgres import NOBODY

pytestmark = pytest.mark.faults


def run_on_a_small_disk(database: str, limit: int, said: str) -> None:
    """No file may grow beyond the limit, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(database, None, 12)
    except StudyError as error:
        Path(said).write_text(str(error))


def run_and_leave_signature(database: str) -> list[Any]:
    return signature(run(database, None, 12))


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    whole = run_and_leave_signature(str(tmp_path / "whole.db"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.study_child"])
    said = tmp_path / "said"
    # Making the tables writes 1 MB of write-ahead log, twelve trials write another.
    child = context.Process(target=run_on_a_small_disk, args=(str(tmp_path / "s.db"), 1_700_000, str(said)))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert "is full or failing; make room and run the same command" in said.read_text()
    assert "Traceback" not in said.read_text()
    stopped = load_result(str(tmp_path / "s.db"))
    assert 0 < sum(t.state.is_finished() for t in stopped.trials) < 12
    assert len(stopped.completions(0)) > 0
    assert run_and_leave_signature(str(tmp_path / "s.db")) == whole


def test_a_database_that_is_locked_for_a_while_is_waited_for(tmp_path: Path) -> None:
    whole = run_and_leave_signature(str(tmp_path / "whole.db"))
    database = tmp_path / "s.db"
    found: list[Any] = []
    study = threading.Thread(target=lambda: found.append(run_and_leave_signature(str(database))))
    study.start()
    wait_for(lambda: database.exists() and database.with_name("s.db-wal").exists() and rows_of(database) > 30)
    with sqlite3.connect(database, timeout=30, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(30)
        other.execute("ROLLBACK")
    study.join(120)
    assert found == [whole]


def run_as_somebody_else(database: str, said: Any) -> None:
    if os.geteuid() == 0:  # root may write everywhere
        os.setuid(NOBODY)
    try:
        run(database, None, 12)
    except StudyError as error:
        said.send(str(error))


def test_a_folder_that_may_only_be_read_says_so() -> None:
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    folder.chmod(0o555)
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.study_child"])
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=run_as_somebody_else, args=(f"{folder}/s.db", theirs))
        child.start()
        child.join(60)
        assert ours.poll(), "it said nothing"
        assert "cannot be written; check the folder's permissions or give another storage=" in ours.recv()
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def rows_of(database: Path) -> int:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM llmsearch_rows").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
