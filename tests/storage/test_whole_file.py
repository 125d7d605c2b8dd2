"""Where a disk has no room: what was there stays, nothing half is left behind, and the same call goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import FileSystemArtifactStore

from llmsearch_optuna import Engine, judge, score, transient_errors
from llmsearch_optuna.analysis.compare import compare_studies
from llmsearch_optuna.analysis.export import save_for
from llmsearch_optuna.cli.bundle import open_bundle, write_bundle
from llmsearch_optuna.errors import EngineUnavailableError, InputError, StudyError
from llmsearch_optuna.report.compare_page import write_comparison
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage.salvage import salvage
from llmsearch_optuna.storage.whole_file import write_whole
from tests.optimize.studies import run, signature
from tests.synthetic import TextEngine, dataset

AGAIN = "make room and give the same command again"


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full; the system itself says so."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study")
    run(made, n_trials=3).opened.close()
    return made


@pytest.fixture
def result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SearchResult:
    """A study on a disk without room."""
    used = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=0))
    return load_result(f"{folder}/s.db")


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITERS: dict[str, Callable[[SearchResult, Path], Any]] = {
    "report": lambda result, folder: result.save_report(folder / "report.html"),
    "comparison": lambda result, folder: write_comparison(compare_studies([result, result]), folder / "compare.html"),
    "configuration": lambda result, folder: result.save_generation_config(folder),
    "Modelfile": lambda result, folder: save_for(result, "ollama", folder),
    "bundle": lambda result, folder: write_bundle(result, folder / "bundle.zip"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, result: SearchResult, what: str) -> None:
    write = WRITERS[what]
    with no_file_beyond(16), pytest.raises(InputError, match=AGAIN):
        write(result, tmp_path / "new")
    assert everything_below(tmp_path / "new") == {}
    write(result, tmp_path / "new")
    written = everything_below(tmp_path / "new")
    assert written
    if what == "bundle":  # is never written over
        return
    with no_file_beyond(16), pytest.raises(InputError, match=AGAIN):
        write(result, tmp_path / "new")
    assert everything_below(tmp_path / "new") == written


def test_an_import_without_room_leaves_nothing_and_goes_on(tmp_path: Path, result: SearchResult) -> None:
    bundle = write_bundle(result, tmp_path / "bundle.zip")
    with no_file_beyond(20_000), pytest.raises(InputError, match="no room to unpack .* give the same command again"):
        open_bundle(bundle, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]
    assert signature(open_bundle(bundle, tmp_path / "there")) == signature(result)


def test_a_salvage_without_room_takes_no_row_for_damaged(tmp_path: Path, result: SearchResult) -> None:
    source = result.opened.path
    assert source is not None
    for size in (60_000, 200_000):
        with no_file_beyond(size), pytest.raises((InputError, StudyError), match="make room"):
            salvage(source, tmp_path / "saved.db")
        assert list(tmp_path.iterdir()) == []
    assert salvage(source, tmp_path / "saved.db").lost == []


def test_artifacts_without_room_end_the_study_which_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, engine = TextEngine(), TextEngine()
    whole = run(tmp_path, undisturbed, name="whole", n_trials=5)
    plain, calls = FileSystemArtifactStore.write, iter(range(1000))

    def full_at_the_third(store: Any, artifact_id: str, content: Any) -> None:
        if next(calls) == 2:
            (Path(store._base_path) / artifact_id).write_bytes(content.read(5))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(store, artifact_id, content)

    monkeypatch.setattr(FileSystemArtifactStore, "write", full_at_the_third)
    with pytest.raises(StudyError, match="is full or failing; make room and run the same command: finished rows"):
        run(tmp_path, n_trials=5)
    assert signature(run(tmp_path, engine, n_trials=5)) == signature(whole)
    assert len(engine.calls) < len(undisturbed.calls), "what was finished is not decoded again"


def full(*_: Any, **__: Any) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
    raise error


def test_judgements_without_room_fail_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0,))
    engine = Engine.from_function(lambda prompts, params: ["3"] * len(prompts))
    metric = judge(engine, "Is it good?", cache=tmp_path / "j.db")
    with monkeypatch.context() as short_of_room:
        short_of_room.setattr(metric.judgements.cache, "put", full)
        with pytest.raises(EngineUnavailableError, match="disk is full.* give the same command again"):
            score(TextEngine(), dataset(3), {"max_new_tokens": 3}, metric=metric)
    assert score(TextEngine(), dataset(3), {"max_new_tokens": 3}, metric=metric).score == 3.0


@pytest.mark.parametrize("place", ["no/such/folder/j.db", "."])
def test_a_place_for_judgements_is_tried_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    engine = Engine.from_function(lambda prompts, params: ["3"])
    with pytest.raises(InputError, match="cache='.*' cannot be used"):
        judge(engine, "Is it good?", cache=place)


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("old")
    (tmp_path / "page").chmod(0o640)
    (tmp_path / "link").symlink_to("page")
    write_whole(tmp_path / "link", "new", "the page")
    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "page").read_text(), (tmp_path / "page").stat().st_mode & 0o777) == ("new", 0o640)
    mask = os.umask(0)
    os.umask(mask)
    assert write_whole(tmp_path / "a" / "b", "x", "it").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("place", ["a folder", "a\x00b", "x" * 300, "file/below"])
def test_places_that_cannot_be_written_are_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the page cannot be written to"):
        write_whole(tmp_path / place, "x", "the page")
