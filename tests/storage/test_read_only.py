"""A finished study that cannot be written is read: the reader is another user, since root may write everywhere."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.storage import read_only
from llmsearch_optuna.storage.study import read_study
from tests.optimize.studies import run
from tests.synthetic import dataset

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where somebody else may read: pytest's own folders are closed to them."""
    made = Path(tempfile.mkdtemp(prefix="read-only-"))
    made.chmod(0o755)
    yield made
    for path in (made, *made.iterdir()):
        path.chmod(0o755)
    shutil.rmtree(made)


def close(path: Path) -> dict[str, bytes]:
    """Take away all rights to write, and return what is in the folder."""
    for file in path.iterdir():
        file.chmod(0o555 if file.is_dir() else 0o444)
    path.chmod(0o555)
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def _read(database: str, outputs: str, said: Any) -> None:
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        os.chdir(outputs)
        result = load_result(database)
        result.save_report("report.html")
        result.save_generation_config("tuned")
        from llmsearch_optuna.cli.app import main
        from llmsearch_optuna.cli.bundle import write_bundle

        write_bundle(result, "study.zip")
        for command in (["status", database], ["report", database]):
            with contextlib.suppress(SystemExit):
                main(command)
        said.send((result.opened.read_only, result.summary, len(result.completions())))
    except BaseException as error:
        said.send(repr(error))
        raise


def read_as_somebody_else(database: Path) -> Any:
    outputs = Path(tempfile.mkdtemp(prefix="outputs-"))
    outputs.chmod(0o777)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read, args=(str(database), str(outputs), theirs))
    child.start()
    child.join(120)
    assert ours.poll(), "it said nothing"
    made = sorted(file.name for file in outputs.iterdir())
    shutil.rmtree(outputs)
    return ours.recv(), made


def test_status_report_and_exports_of_a_study_that_cannot_be_written(folder: Path) -> None:
    result = run(folder, n_trials=4)
    summary = result.summary
    result.opened.close()
    del result
    before = close(folder)
    (is_read_only, said, rows), made = read_as_somebody_else(folder / "s.db")
    assert is_read_only
    assert said == summary
    assert rows > 0
    assert made == ["report.html", "s.html", "study.zip", "tuned"]
    assert contents(folder) == before


def test_rows_in_the_write_ahead_log_are_read_too(folder: Path, tmp_path: Path) -> None:
    result = run(tmp_path, n_trials=4)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as other:
        other.execute("SELECT 1 FROM sqlite_master").close()  # keeps the log there
        result.opened.database.dispose()
        with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as writer, writer:
            writer.execute("UPDATE llmsearch_rows SET text = 'from the log'")
        for name in ("s.db", "s.db-wal"):
            shutil.copyfile(tmp_path / name, folder / name)
    assert b"from the log" not in (folder / "s.db").read_bytes()
    before = close(folder)
    connect = read_only.read_only_connections(folder / "s.db", 1.0)
    with contextlib.closing(connect()) as connection:
        assert connection.execute("SELECT DISTINCT text FROM llmsearch_rows").fetchall() == [("from the log",)]
    (_, said, _), _ = read_as_somebody_else(folder / "s.db")
    assert said == result.summary
    assert before.keys() <= contents(folder).keys()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    run(tmp_path, n_trials=2).opened.close()
    return tmp_path / "s.db"


def test_an_empty_file_says_that_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(StudyError, match="is empty"):
        read_study(str(tmp_path / "empty.db"))


def test_a_folder_says_that_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is a folder"):
        read_study(str(tmp_path))


def test_a_database_whose_log_is_missing_says_so(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("CREATE TABLE studies (x)").close()
        connection.commit()
        shutil.copyfile(tmp_path / "s.db", tmp_path / "copy.db")
    with pytest.raises(StudyError, match=r"without tables.*copy\.db-wal, which is to be copied too"):
        read_study(str(tmp_path / "copy.db"))


def test_a_search_in_a_database_whose_log_is_missing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, name="new", n_trials=1, dataset=dataset(6))
    assert "without tables" not in caplog.text
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("CREATE TABLE studies (x)").close()
        connection.commit()
        shutil.copyfile(tmp_path / "s.db", tmp_path / "copy.db")
    run(tmp_path, name="copy", n_trials=1, dataset=dataset(6))
    told = [message for message in caplog.messages if "in which a new study begins" in message]
    assert len(told) == 1
    assert "copy.db-wal, which is to be copied too" in told[0]
    run(tmp_path, name="copy", n_trials=1, dataset=dataset(6))
    assert len([message for message in caplog.messages if "in which a new study begins" in message]) == 1


def test_a_name_too_long_for_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="too long for a file's name"):
        read_study(str(tmp_path / f"{'n' * 300}.db"))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_a_server_that_is_away_is_named_with_what_it_said(host: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StudyError, match="does not answer") as caught:
        read_study(f"postgresql+psycopg://ann:hunter2-of-ann@{host}/x", "s")
    assert "hunter2" not in str(caught.value)


def test_a_server_that_accepts_and_never_speaks_is_not_waited_for_without_end() -> None:
    import socket

    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(StudyError, match="does not answer"):
            read_study(f"postgresql+psycopg://ann@127.0.0.1:{port}/x?connect_timeout=2", "s")


def test_a_damaged_file_names_the_command_that_reads_the_rest(database: Path) -> None:
    half = database.read_bytes()[: database.stat().st_size // 2]
    database.write_bytes(half)
    with pytest.raises(StudyError, match="salvage"):
        read_study(str(database))
