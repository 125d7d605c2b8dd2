"""Disks that fill up, folders that cannot be written, databases that are locked for a while."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.search_result import load_result
from tests.faults.study_child import run
from tests.faults.test_kill import lines, signature, start, wait_for
from tests.postgres import NOBODY

pytestmark = pytest.mark.faults

CANNOT_BE_WRITTEN = "cannot be written; check the folder's permissions or give another storage="


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
    database, log = tmp_path / "s.db", tmp_path / "log"
    study = start(database, log, 12)
    wait_for(lambda: len(lines(log)) > 30)
    with contextlib.closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before = rows_of(database)
        time.sleep(30)
        assert rows_of(database) == before, "nothing can be written"
        assert study.is_alive()
        other.execute("ROLLBACK")
    study.join(120)
    assert study.exitcode == 0
    assert signature(load_result(str(database))) == whole


def run_as_somebody_else(database: str, said: Any) -> None:
    if os.geteuid() == 0:  # root may write everywhere
        os.setuid(NOBODY)
    try:
        run(database, None, 12)
    except StudyError as error:
        said.send(str(error))


def test_a_folder_that_may_only_be_read_says_so() -> None:
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    try:
        folder.chmod(0o555)
        assert CANNOT_BE_WRITTEN in said_to_somebody_else(folder / "s.db")
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_what_is_in_a_folder_that_may_only_be_read_is_still_there_afterwards(tmp_path: Path) -> None:
    whole = run_and_leave_signature(str(tmp_path / "whole.db"))
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    try:
        run(f"{folder}/s.db", None, 6)
        before = signature(load_result(f"{folder}/s.db"))
        gc.collect()  # the result's connections
        (folder / "s.db").chmod(0o444)
        folder.chmod(0o555)
        assert CANNOT_BE_WRITTEN in said_to_somebody_else(folder / "s.db")
        (folder / "s.db").chmod(0o644)
        folder.chmod(0o755)
        assert signature(load_result(f"{folder}/s.db")) == before
        assert run_and_leave_signature(f"{folder}/s.db")[0] == whole[0]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def said_to_somebody_else(database: Path) -> str:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.study_child"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=run_as_somebody_else, args=(str(database), theirs))
    child.start()
    child.join(60)
    assert ours.poll(), "it said nothing"
    return str(ours.recv())


def rows_of(database: Path) -> int:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM llmsearch_rows").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
