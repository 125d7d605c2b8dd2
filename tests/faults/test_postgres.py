"""A study on a PostgreSQL server: the one that SQLite gives, whatever is killed and however many work on it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna import dashboard
from llmsearch_optuna.cli.bundle import open_bundle, write_bundle
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.storage.leases import ClaimLostError, Session
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy, open_study
from tests.dashboard.test_server import free_port, get
from tests.faults.study_child import run
from tests.faults.test_kill import kill_again_and_again, lines, signature, start, wait_for
from tests.postgres import empty_database, server

pytestmark = pytest.mark.faults

TRIALS = 16


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture
def url(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of its own for each test; artifacts go into the test's folder."""
    monkeypatch.chdir(tmp_path)
    return empty_database(postgres)


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return signature(run(str(tmp_path_factory.mktemp("sqlite") / "study.db"), None, TRIALS))


def test_the_study_is_that_on_sqlite(url: str, on_sqlite: list[Any]) -> None:
    assert signature(run(url, None, TRIALS)) == on_sqlite
    assert signature(load_result(url)) == on_sqlite


def test_a_study_that_is_killed_goes_on(url: str, tmp_path: Path, on_sqlite: list[Any]) -> None:
    kill_again_and_again(url, tmp_path / "log", random.Random(11), [0, 1, 70, 150, 290, 400])
    assert signature(load_result(url)) == on_sqlite


def test_workers_that_are_killed_are_followed(url: str, tmp_path: Path, on_sqlite: list[Any]) -> None:
    moments = random.Random(3)
    workers = [start(url, tmp_path / f"log{n}", TRIALS) for n in range(4)]
    wait_for(lambda: sum(len(lines(tmp_path / f"log{n}")) for n in range(4)) > 40)
    time.sleep(moments.uniform(0.0, 0.5))
    for victim in workers[:2]:
        victim.kill()
        victim.join()
    for worker in workers[2:]:
        worker.join(240)
        assert worker.exitcode == 0
    assert signature(load_result(url)) == on_sqlite
    by_survivors = Counter(line for n in (2, 3) for line in lines(tmp_path / f"log{n}"))
    assert set(by_survivors.values()) <= {1}, "a row was decoded by two workers"


def opened_at(url: str) -> OpenedStudy:
    return open_study(url, "s", direction="maximize", fingerprint={})


def test_work_is_claimed_once_and_a_slow_worker_does_not_write_over_its_successor(url: str) -> None:
    opened = opened_at(url)
    with Session(opened.database, opened.key) as a:
        old = a.claim(3)
        assert old is not None
        with Session(opened.database, opened.key) as b:
            assert b.claim(3) is None
        with opened.database.begin() as connection:
            connection.exec_driver_sql("UPDATE llmsearch_workers SET host = 'elsewhere', lease_end = 0")
        with Session(opened.database, opened.key) as b:
            assert b.claim(3) is not None
        with pytest.raises(ClaimLostError):
            opened.records.record("search", 3, [], fence=old)
    opened.close()


def test_machines_need_not_agree_on_the_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease of a worker elsewhere holds for one whose clock is an hour ahead, and theirs for it."""
    opened, now = opened_at(url), time.time
    with Session(opened.database, opened.key) as a:
        assert a.claim(3) is not None
        with opened.database.begin() as connection:
            connection.exec_driver_sql("UPDATE llmsearch_workers SET host = 'elsewhere'")
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        with Session(opened.database, opened.key) as b:
            assert b.claim(3) is None
            assert b.claim(4) is not None
            monkeypatch.undo()
            assert a.live_owners() == {a.owner, b.owner}
        assert a.claim(4) is not None
    opened.close()


def test_text_that_postgres_refuses_is_stored_all_the_same(url: str) -> None:
    opened = opened_at(url)
    request = Request("", 0, "prompt", GenerationParams.of({"max_new_tokens": 4}))
    opened.records.record("search", 0, [RowRecord.of(Finished(request, Completion("a\x00b \ud83d")))])
    assert [r.text for r in opened.records.rows("search", 0)] == ["a\ufffdb ?"]
    opened.close()


def test_the_study_is_shared_as_a_bundle_and_shown_by_the_dashboard(
    url: str, tmp_path: Path, on_sqlite: list[Any]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    result, port = run(url, None, TRIALS), free_port()
    moved = open_bundle(write_bundle(result, tmp_path / "study.zip"), tmp_path / "moved")
    assert signature(moved) == on_sqlite
    assert moved.completions().equals(result.completions())
    artifacts = {path.name for path in result.opened.artifacts_folder.iterdir()}
    assert {path.name for path in moved.opened.artifacts_folder.iterdir()} == artifacts != set()
    threading.Thread(target=dashboard.serve, args=(result.opened,), kwargs={"port": port}, daemon=True).start()
    root = f"http://127.0.0.1:{port}"
    study = json.loads(get(f"{root}/api/studies"))["study_summaries"][0]["study_id"]
    detail = json.loads(get(f"{root}/api/studies/{study}?after=0"))
    assert len(detail["trials"]) == TRIALS
    assert "on 18 held-out rows" in detail["note"]["body"]
    trial = detail["trials"][0]
    rows = get(f"{root}/artifacts/{study}/{trial['trial_id']}/{trial['artifacts'][0]['artifact_id']}").decode()
    assert len(rows.splitlines()) == len(result.records(0))


def test_a_server_that_does_not_answer_is_named_with_what_to_do() -> None:
    with pytest.raises(StudyError, match="does not answer .*start it or check the address"):
        open_study("postgresql+psycopg://nobody@/x?host=/nowhere", "s", direction="maximize", fingerprint={})
