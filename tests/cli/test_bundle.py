from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.cli import bundle as bundles
from llmsearch_optuna.cli.bundle import copy_through_optuna, open_bundle, write_bundle
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import SearchResult, load_result
from tests.optimize.studies import Interrupting, run, signature
from tests.synthetic import TextEngine


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(tmp_path_factory.mktemp("finished"), n_trials=6)


@pytest.fixture(scope="module")
def bundle(finished: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(finished, tmp_path_factory.mktemp("bundle") / "study.zip")


def test_a_study_is_the_same_elsewhere(finished: SearchResult, bundle: Path, tmp_path: Path) -> None:
    moved = open_bundle(bundle, tmp_path / "moved")
    assert signature(moved) == signature(finished)
    assert moved.completions().equals(load_result(str(finished.opened.path)).completions())
    assert moved.opened.path == tmp_path / "moved" / "study.db"
    assert (tmp_path / "moved" / "generation_config.json").is_file()
    assert "<html" in moved.save_report(tmp_path / "again.html").read_text(encoding="utf-8")
    artifacts = {path.name for path in finished.opened.artifacts_folder.iterdir()}
    assert {path.name for path in moved.opened.artifacts_folder.iterdir()} == artifacts != set()


def test_a_study_goes_on_elsewhere_as_it_would_have_here(tmp_path: Path) -> None:
    engine = Interrupting()
    engine.every = 12
    with pytest.raises(StudyInterrupted):
        run(tmp_path, engine, n_trials=6)
    stopped = load_result(f"{tmp_path}/s.db")
    moved = open_bundle(write_bundle(stopped, tmp_path / "b.zip"), tmp_path / "elsewhere")
    assert moved.opened.path is not None
    arguments: dict[str, Any] = {"n_trials": 6, "storage": f"sqlite:///{moved.opened.path}"}
    engine.every = 0
    done = len(engine.calls)
    there = run(tmp_path, engine, **arguments)
    assert len(set(engine.calls)) == len(engine.calls) > done, "what was decoded here is not decoded there"
    assert signature(there) == signature(run(tmp_path, Interrupting(), name="whole", n_trials=6))


def test_one_study_of_several_is_copied_alone(tmp_path: Path) -> None:
    first = run(tmp_path, n_trials=3)
    run(tmp_path, n_trials=2, study_name="other", seed=3)
    moved = open_bundle(write_bundle(first, tmp_path / "b.zip"), tmp_path / "moved")
    assert [s.study_name for s in moved.opened.rdb.get_all_studies()] == ["study"]
    assert signature(moved) == signature(first)
    again = run(tmp_path, TextEngine(), n_trials=3, storage=f"sqlite:///{moved.opened.path}")
    assert signature(again) == signature(first)


def test_a_study_on_a_server_is_copied_through_optuna(finished: SearchResult, tmp_path: Path) -> None:
    copy_through_optuna(finished.opened, tmp_path / "copy.db")
    assert signature(load_result(str(tmp_path / "copy.db"))) == signature(finished)


def test_nothing_is_written_over(finished: SearchResult, bundle: Path, tmp_path: Path) -> None:
    before = bundle.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        write_bundle(finished, bundle)
    assert bundle.read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already"):
        open_bundle(bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "name",
    ["../out.txt", "/abs.txt", "artifacts/../../out.txt", "artifacts/a/b", "x.py", "artifacts\\..\\x", "artifacts/.a"],
)
def test_what_does_not_belong_is_refused_before_anything_is_written(bundle: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(InputError, match="which no bundle holds"):
        open_bundle(bad, tmp_path / "in" / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip"]


def test_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(bundle.read_bytes())
    link = zipfile.ZipInfo("artifacts/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="which no bundle holds"):
        open_bundle(bad, tmp_path / "here")


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InputError, match="cannot be read as a bundle"):
        open_bundle(tmp_path / "text.zip", tmp_path / "here")
    with pytest.raises(InputError, match="cannot be read as a bundle"):
        open_bundle(tmp_path / "none.zip", tmp_path / "here")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match="is no bundle"):
        open_bundle(tmp_path / "empty.zip", tmp_path / "here")


def test_the_default_folder_has_a_safe_name() -> None:
    assert bundles._folder_name("../a b/ü") == "a-b-ü"
    assert bundles._folder_name("..") == "study"
