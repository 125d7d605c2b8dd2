from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.storage import connection, study
from llmsearch_optuna.storage import errors as database_errors
from llmsearch_optuna.storage.row_record import RowRecord


def open_at(folder: Path) -> study.OpenedStudy:
    return study.open_study(f"sqlite:///{folder}/deep/study.db", "s", direction="maximize", fingerprint={})


def test_sqlite_gets_the_settings_that_let_several_processes_write(tmp_path: Path) -> None:
    opened = open_at(tmp_path)
    with opened.database.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert found == ["wal", 1, 60_000]


def test_a_database_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mails.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mails (id INTEGER)")
    with pytest.raises(StudyError, match="database of something else"):
        study.open_study(f"sqlite:///{path}", "s", direction="minimize", fingerprint={})
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    assert names == ["mails"]


@pytest.mark.parametrize("content", [b"this is a text, not a database", b"\x00" * 4096])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(StudyError, match="no SQLite database"):
        study.open_study(f"sqlite:///{tmp_path}/x.db", "s", direction="minimize", fingerprint={})
    assert (tmp_path / "x.db").read_bytes() == content


def test_a_truncated_database_is_refused(tmp_path: Path) -> None:
    opened = open_at(tmp_path)
    path = opened.path
    assert path is not None
    opened.records.record("search", 0, [RowRecord(row, 0, "text" * 100) for row in range(500)])
    with opened.database.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    opened.close()
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    with pytest.raises(StudyError, match="damaged.*restore a copy, or give another storage="):
        open_at(tmp_path)
    assert path.read_bytes() == half, "what is left of it is for SQLite's own tools to save"


WRITE_AND_END = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE other (x)")
connection.commit()
connection.close()
"""


@pytest.mark.parametrize("name", ["s", "there is no such study"])
def test_opening_a_study_again_takes_no_lock_from_who_reads_it(tmp_path: Path, name: str) -> None:
    opened = open_at(tmp_path)
    assert opened.study.get_trials() == []
    with contextlib.suppress(StudyError):
        study.read_study(f"{opened.path}", name).close()
    # The last one to close a database takes its write-ahead log away: that is not this one.
    subprocess.run([sys.executable, "-c", WRITE_AND_END, str(opened.path)], check=True)
    log = Path(f"{opened.path}-wal")
    assert log.exists()
    opened.close()
    assert not log.exists()


def test_a_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_at(tmp_path)
    opened.close()
    monkeypatch.setattr(connection, "BUSY_SECONDS", 1)
    with sqlite3.connect(f"{opened.path}") as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(StudyError, match="locked by another process"),
            database_errors.storage_errors(opened.address),
        ):
            again = open_at(tmp_path)
            again.records.record("search", 0, [RowRecord(0, 0, "text")])


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written|File exists|Not a directory"):
        study.open_study(f"sqlite:///{tmp_path}/file/s.db", "s", direction="minimize", fingerprint={})
