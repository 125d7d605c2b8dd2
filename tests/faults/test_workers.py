"""Several processes on one study: nothing is done twice, and the study is the one that a single process makes."""

from __future__ import annotations

import contextlib
import fcntl
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsearch_optuna.search_result import load_result
from tests.faults.test_kill import lines, signature, start, wait_for

pytestmark = pytest.mark.faults


TRIALS = 24
MANY_TRIALS = 60


def run_alone(folder: Path, n_trials: int) -> tuple[list[Any], int]:
    """The study that a single process makes, and how many rows it decodes."""
    child = start(folder / "study.db", folder / "log", n_trials)
    child.join(280)
    assert child.exitcode == 0
    return signature(load_result(str(folder / "study.db"))), len(lines(folder / "log"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], int]:
    return run_alone(tmp_path_factory.mktemp("alone"), TRIALS)


def test_four_processes_make_the_study_that_one_makes(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    study, _ = run_alone(tmp_path / "alone", MANY_TRIALS)
    database = tmp_path / "study.db"
    workers = [start(database, tmp_path / f"log{n}", MANY_TRIALS) for n in range(4)]
    for worker in workers:
        worker.join(280)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert signature(load_result(str(database))) == study
    decoded = Counter(line for n in range(4) for line in lines(tmp_path / f"log{n}"))
    assert set(decoded.values()) == {1}, "a row was decoded by two workers"
    assert sum(bool(lines(tmp_path / f"log{n}")) for n in range(4)) >= 2, "the work was shared"


def test_workers_that_are_killed_are_followed(tmp_path: Path, alone: tuple[list[Any], int]) -> None:
    study, rows = alone
    database, moments = tmp_path / "study.db", random.Random(7)
    workers = {n: start(database, tmp_path / f"log{n}", TRIALS) for n in range(3)}
    for n in range(3, 12):
        wait_for(lambda n=n: _decoded_by_all(tmp_path) >= rows * (n - 2) // 12, 120)
        victim = moments.choice(sorted(workers))
        workers[victim].kill()
        workers.pop(victim).join()
        workers[n] = start(database, tmp_path / f"log{n}", TRIALS)
    for worker in workers.values():
        worker.join(240)
        assert worker.exitcode == 0
    assert signature(load_result(str(database))) == study


@pytest.mark.parametrize("attempt", range(3))
def test_four_workers_that_are_all_killed_and_started_again_make_that_study_every_time(
    tmp_path: Path, alone: tuple[list[Any], int], attempt: int
) -> None:
    study, rows = alone
    database, moment = tmp_path / "study.db", random.Random(attempt).randrange(10, rows - 10)
    workers = [start(database, tmp_path / f"log{n}", TRIALS) for n in range(4)]
    wait_for(lambda: _decoded_by_all(tmp_path) >= moment, 120)
    for worker in workers:
        worker.kill()
        worker.join()
    workers = [start(database, tmp_path / f"log{n}", TRIALS) for n in range(4, 8)]
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert signature(load_result(str(database))) == study


def test_a_worker_that_was_only_slow_ends_well_and_changes_nothing(
    tmp_path: Path, alone: tuple[list[Any], int]
) -> None:
    study, rows = alone
    database = tmp_path / "study.db"
    slow = start(database, tmp_path / "log0", TRIALS)
    wait_for(lambda: _decoded_by_all(tmp_path) >= rows // 3, 120)
    process = psutil.Process(slow.pid)
    _suspend_without_locks(process, database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        # What the others would see after a minute: of a worker elsewhere they know its lease alone.
        connection.execute("UPDATE llmsearch_workers SET host = 'elsewhere', lease_end = 0")
    successor = start(database, tmp_path / "log1", TRIALS)
    successor.join(240)
    assert successor.exitcode == 0
    process.resume()
    slow.join(60)
    assert slow.exitcode == 0
    assert signature(load_result(str(database))) == study


def _suspend_without_locks(process: psutil.Process, database: Path) -> None:
    """Suspend a worker where it is slow, and not where it keeps everybody from the database."""
    while True:
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        try:
            with (
                contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection,
                Path(f"{database}-lock").open("rb") as lock,
            ):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (sqlite3.OperationalError, BlockingIOError):
            process.resume()
            time.sleep(0.01)


def _decoded_by_all(folder: Path) -> int:
    return sum(len(lines(log)) for log in folder.glob("log*"))
