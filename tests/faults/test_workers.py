"""Several processes on one study: nothing is done twice, and the study is the one that a single process makes."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.result import load_result
from tests.faults.test_kill import lines, signature, start

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("alone")
    child = start(folder / "study.db", folder / "log", 24)
    child.join(120)
    assert child.exitcode == 0
    return signature(load_result(str(folder / "study.db")))


def test_four_processes_make_the_study_that_one_makes(tmp_path: Path, alone: list[Any]) -> None:
    database = tmp_path / "study.db"
    workers = [start(database, tmp_path / f"log{n}", 24) for n in range(4)]
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert signature(load_result(str(database))) == alone
    decoded = Counter(line for n in range(4) for line in lines(tmp_path / f"log{n}"))
    assert set(decoded.values()) == {1}, "a row was decoded by two workers"
    assert sum(bool(lines(tmp_path / f"log{n}")) for n in range(4)) >= 2, "the work was shared"


def test_workers_that_are_killed_are_followed(tmp_path: Path, alone: list[Any]) -> None:
    database, moments = tmp_path / "study.db", random.Random(7)
    workers = {n: start(database, tmp_path / f"log{n}", 24) for n in range(3)}
    for n in range(3, 12):
        time.sleep(moments.uniform(0.3, 1.5))
        victim = moments.choice(sorted(workers))
        workers[victim].kill()
        workers.pop(victim).join()
        workers[n] = start(database, tmp_path / f"log{n}", 24)
    for worker in workers.values():
        worker.join(240)
        assert worker.exitcode == 0
    assert signature(load_result(str(database))) == alone
