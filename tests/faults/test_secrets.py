"""A password in the storage address stays in the process: no output, no file and no table of a whole run has it."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from llmsearch_optuna.cli.bundle import STUDY_FILE
from llmsearch_optuna.progress import Quiet
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE, read_study
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.workers.processes import search_with_workers
from tests.cli.conftest import STUDY, WordEngine, run, write_study
from tests.postgres import empty_database, server

pytestmark = pytest.mark.faults

SECRET = "hunter2-of-ann"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
    return tmp_path


def with_password(url: str, form: str) -> str:
    if form == "userinfo":
        return url.replace("postgres@", f"postgres:{SECRET}@")
    return f"{url}&password={SECRET}"


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of every file, those in zips too."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())


def tables_of(url: str) -> Iterator[tuple[str, str]]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            yield table, repr(connection.exec_driver_sql(f'SELECT * FROM "{table}"').all())
    engine.dispose()


@pytest.mark.parametrize("place", ["in the study file", "on the command line"])
@pytest.mark.parametrize("form", ["userinfo", "query"])
def test_the_password_is_in_nothing_that_a_run_leaves(
    postgres: str, workplace: Path, capsys: pytest.CaptureFixture[str], form: str, place: str
) -> None:
    url = with_password(empty_database(postgres), form)
    study, given = workplace / "study.toml", ["--storage", url]
    if place == "in the study file":
        study.write_text(study.read_text().replace("n_trials = 12", f'n_trials = 4\nstorage = "{url}"'))
        given = []
    commands = [
        ["run", "study.toml", *given, "--n-trials", "4", "--dry-run"],
        ["run", "study.toml", *given, "--n-trials", "4", "--dry-run", "--json"],
        ["run", "study.toml", *given, "--n-trials", "4"],
        ["run", "study.toml", *given, "--n-trials", "5", "--json"],
        ["status", url],
        ["status", url, "--json"],
        ["report", url, "-o", "report.html"],
        ["export", url, "-o", "exported"],
        ["export", url, "--bundle", "study.zip"],
        ["import", "study.zip", "-o", "imported"],
        ["compare", url, "imported/study.db"],
        ["confirm", url, "--model", "other", "--data", "rows.jsonl"],
        ["confirm", url, "--model", "other", "--json"],
        ["check", url],
        ["check", url, "--json"],
        ["push", url, "--repo", "ann/model", "--dry-run"],
        ["export", url, "-o", "vllm", "--for", "vllm"],
        ["score", "study.toml", "temperature=0.7", "--json"],
        ["salvage", "imported/study.db", "-o", "salvaged.db"],
    ]
    for command in commands:
        code, out, err = run(capsys, *command)
        assert code == 0, (command, out, err)
        assert SECRET not in out + err, command
    for command in (
        ["status", url, "--study-name", "no such study"],
        ["status", url.replace("+psycopg", "+psycop")],
        ["status", url.replace("/study_", "/no_such_")],
        ["run", "study.toml", "--storage", url.replace("host=", "hosst=")],
        ["run", url],
        ["score", url],
        ["salvage", url],
        ["import", url],
        ["push", url, "--repo", "no repository"],
        ["confirm", url, "--model", "other", "--data", url],
        ["compare", url, url.replace("/study_", "/no_such_")],
        ["run", "study.toml", "--data", url],
        ["run", "study.toml", "--name", url, "--storage", "sqlite:///x" + "y" * 300 + ".db"],
        ["status", url, url],
        ["status", "--port", url],
        ["run", "study.toml", "--n-trials", url],
        [url],
        ["run", "study.toml", "--constraint", url, "--storage", "s.db"],
        ["run", "study.toml", "--workers", url, "--storage", "s.db"],
        ["run", "study.toml", "--ray", url, "--storage", url],
    ):
        code, out, err = run(capsys, *command)
        assert code in (1, 2), (command, out)
        assert "this should not have happened" not in err
        assert SECRET not in out + err, command
    study.unlink()
    assert [name for name, contents in everything_in(workplace) if SECRET.encode() in contents] == []
    assert [table for table, contents in tables_of(url) if SECRET in contents] == []
    assert 'storage = "postgresql+psycopg://postgres' in (workplace / "imported" / STUDY_FILE).read_text()


def test_what_an_older_version_stored_with_its_password_is_not_handed_on(
    postgres: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = empty_database(postgres)
    code, _, err = run(capsys, "run", "study.toml", "--storage", url, "--n-trials", "3", "--quiet")
    assert code == 0, err
    text = f'[study]\nstorage = "{with_password(url, "userinfo")}"\n'
    opened = read_study(url)
    opened.study.set_user_attr(STUDY_FILE_ATTRIBUTE, text)
    opened.close()
    for command in (["report", url, "-o", "report.html"], ["export", url, "--bundle", "study.zip"]):
        assert run(capsys, *command)[0] == 0
    assert run(capsys, "import", "study.zip", "-o", "imported")[0] == 0
    assert [name for name, contents in everything_in(workplace) if SECRET.encode() in contents] == []


def test_the_password_is_in_no_log_no_traceback_and_no_command_line_of_a_worker(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    url = with_password(empty_database(postgres), "userinfo")
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        parent = psutil.Process()
        while not done.wait(0.05):
            for child in parent.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    seen.update((" ".join(child.cmdline()), repr(child.environ())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    arguments = search_arguments(parse_study_file(STUDY.replace("n_trials = 12", f'n_trials = 3\nstorage = "{url}"')))
    arguments["model"] = WordEngine()
    with caplog.at_level(logging.DEBUG):
        search_with_workers(arguments, 2, Quiet())
    done.set()
    watcher.join()
    assert len(seen) > 2
    assert not [line for line in seen if SECRET in line]
    assert SECRET not in caplog.text
    environment = {**os.environ, "LLMSEARCH_DEBUG": "1"}
    broken = "from llmsearch_optuna.cli import app, inspect; import llmsearch_optuna.cli.arguments as a; "
    broken += "a.load = lambda *_: 1 / 0; app.main()"
    told = subprocess.run(
        [sys.executable, "-c", broken, "status", url], env=environment, capture_output=True, text=True
    )
    assert "ZeroDivisionError" in told.stderr
    assert SECRET not in told.stderr + told.stdout
