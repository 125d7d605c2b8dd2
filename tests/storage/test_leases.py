from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from llmsearch_optuna.storage import leases, schema
from llmsearch_optuna.storage.leases import Claim, ClaimLostError, Session
from llmsearch_optuna.storage.study import OpenedStudy, open_study


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    return open_study(f"sqlite:///{tmp_path}/s.db", "s", direction="maximize", fingerprint={})


def is_held(claim: Claim, opened: OpenedStudy) -> bool:
    """Whether a commit under this claim would go through."""
    try:
        with opened.database.begin() as connection:
            claim.check(connection)
    except ClaimLostError:
        return False
    return True


def test_work_is_claimed_once(opened: OpenedStudy) -> None:
    with Session(opened.database, opened.key) as a, Session(opened.database, opened.key) as b:
        first = a.claim(3)
        assert first is not None
        assert a.claim(3) is None
        assert b.claim(3) is None
        assert b.claim(4) is not None
        assert is_held(first, opened)
        assert a.live_owners() == b.live_owners() == {a.owner, b.owner}


def test_whoever_says_goodbye_is_followed_at_once(opened: OpenedStudy) -> None:
    with Session(opened.database, opened.key) as a:
        old = a.claim(0)
    assert old is not None
    with Session(opened.database, opened.key) as b:
        new = b.claim(0)
        assert new is not None
        assert new.token == old.token + 1
        assert not is_held(old, opened)


def test_a_process_that_is_gone_is_followed_at_once(opened: OpenedStudy) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    with Session(opened.database, opened.key) as a:
        claim = a.claim(0)
        assert claim is not None
        with opened.database.begin() as connection:
            connection.execute(sa.update(schema.workers).values(pid=gone.pid))
        with Session(opened.database, opened.key) as b:
            assert b.claim(0) is not None


def test_a_process_with_the_same_number_but_another_start_is_someone_else(opened: OpenedStudy) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with Session(opened.database, opened.key) as a:
            assert a.claim(0) is not None
            with opened.database.begin() as connection:
                connection.execute(sa.update(schema.workers).values(pid=other.pid, started=time.time() - 86_400))
            with Session(opened.database, opened.key) as b:
                assert b.claim(0) is not None
    finally:
        other.communicate(b"\n")


def test_a_worker_elsewhere_is_followed_when_its_lease_has_ended(opened: OpenedStudy) -> None:
    with Session(opened.database, opened.key) as a:
        assert a.claim(0) is not None
        with opened.database.begin() as connection:
            connection.execute(sa.update(schema.workers).values(host="another machine", pid=1))
        with Session(opened.database, opened.key) as b:
            assert b.claim(0) is None
            with opened.database.begin() as connection:
                ended = sa.update(schema.workers).where(schema.workers.c.owner == a.owner)
                connection.execute(ended.values(lease_end=time.time() - 1))
            assert b.claim(0) is not None


def test_a_heartbeat_renews_the_lease(opened: OpenedStudy) -> None:
    with Session(opened.database, opened.key, lease_seconds=30, heartbeat_seconds=0.05) as a:
        with opened.database.begin() as connection:
            connection.execute(sa.update(schema.workers).values(lease_end=0.0))
        query = sa.select(schema.workers.c.lease_end).where(schema.workers.c.owner == a.owner)
        begun = time.monotonic()
        while time.monotonic() - begun < 20:
            with opened.database.connect() as connection:
                if connection.execute(query).scalar_one() > time.time():
                    break
            time.sleep(0.05)
        else:
            pytest.fail("the lease was not renewed")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            sa.exc.OperationalError("UPDATE workers", {"x": 1}, Exception("is locked")),
            "is locked",
        ),
        (OSError(errno.EMFILE, "too many open files"), "[Errno 24] too many open files"),
    ],
)
def test_a_lease_that_cannot_be_renewed_is_told_in_a_line_and_renewed_later(
    opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    renewed, plain = threading.Event(), Session._renew

    def renew(session: Session) -> None:
        if len(caplog.messages) in (0, 1) and session._heart is not None:
            raise error
        plain(session)
        if caplog.messages:
            renewed.set()

    monkeypatch.setattr(Session, "_renew", renew)
    with caplog.at_level(logging.WARNING), Session(opened.database, opened.key, heartbeat_seconds=0.02):
        assert renewed.wait(30)
    assert caplog.messages == [f"the lease could not be renewed ({said}); trying again"] * 2


def test_a_session_of_this_process_that_ended_badly_is_gone(opened: OpenedStudy) -> None:
    crashed = Session(opened.database, opened.key)
    crashed.__enter__()
    assert crashed.claim(0) is not None
    crashed._ended.set()
    leases._living.discard(crashed.owner)  # as after a crash of the interpreter that got the same process number
    with Session(opened.database, opened.key) as b:
        assert b.claim(0) is not None


def test_studies_in_one_database_do_not_share_claims(opened: OpenedStudy, tmp_path: Path) -> None:
    other = open_study(f"sqlite:///{tmp_path}/s.db", "other", direction="maximize", fingerprint={})
    with Session(opened.database, opened.key) as a, Session(other.database, other.key) as b:
        assert a.claim(0) is not None
        assert b.claim(0) is not None
        assert a.live_owners() == {a.owner}


def test_a_clock_that_was_set_back_keeps_nobody_waiting_for_a_dead_worker(
    opened: OpenedStudy, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(opened.database, opened.key) as dead:
        assert dead.claim(0) is not None
        with opened.database.begin() as connection:
            connection.execute(sa.update(schema.workers).values(host="elsewhere", lease_end=time.time() + 3600))
        with (
            caplog.at_level(logging.WARNING, "llmsearch_optuna"),
            Session(opened.database, opened.key, lease_seconds=0.5, heartbeat_seconds=0.1) as survivor,
        ):
            assert survivor.claim(0) is None, "it may be alive"
            time.sleep(0.7)
            claim = survivor.claim(0)
    assert claim is not None
    assert claim.token == 2
    assert [r.message.split(" ends in")[0] for r in caplog.records] == ["the lease of a worker on elsewhere"]
    assert "clock was set back" in caplog.text


def test_a_lease_that_is_renewed_is_kept_whatever_the_clock_says(opened: OpenedStudy) -> None:
    with (
        Session(opened.database, opened.key, lease_seconds=3600, heartbeat_seconds=0.05) as alive,
        Session(opened.database, opened.key, lease_seconds=0.5, heartbeat_seconds=0.1) as other,
    ):
        assert alive.claim(0) is not None
        for _ in range(8):
            assert other.claim(0) is None
            time.sleep(0.1)
