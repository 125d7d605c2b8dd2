from __future__ import annotations

import shutil
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
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE
from tests.cli.conftest import run as run_command
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


def packed_anew(bundle: Path, target: Path, changed: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(target, "w", how) as new:
        for name in [*old.namelist(), *(name for name in changed if name not in old.namelist())]:
            new.writestr(name, changed.get(name, old.read(name) if name in old.namelist() else b""))
    return target


def assert_refused(path: Path, folder: Path, said: str) -> None:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(InputError, match=said):
        open_bundle(path, folder / "here")
    assert sorted(p.name for p in folder.iterdir()) == before, "nothing is left behind"


def test_damaged_zips_are_told_and_leave_nothing(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    bad = tmp_path / "bad.zip"
    for at in range(200, len(good), max(1, len(good) // 12)):
        bad.write_bytes(good[:at] + bytes(64) + good[at + 64 :])
        try:
            open_bundle(bad, tmp_path / "here").opened.close()
        except InputError:
            assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]
        else:
            shutil.rmtree(tmp_path / "here")
    bad.write_bytes(good[: len(good) // 2])
    assert_refused(bad, tmp_path, "cannot be read as a bundle")


def test_encrypted_and_oddly_packed_zips_are_told(bundle: Path, tmp_path: Path) -> None:
    encrypted = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        for member in archive.infolist():
            encrypted[member.header_offset + 6] |= 1
    at = 0
    while (at := encrypted.find(b"PK\x01\x02", at)) >= 0:
        encrypted[at + 8] |= 1
        at += 4
    (tmp_path / "bad.zip").write_bytes(encrypted)
    assert_refused(tmp_path / "bad.zip", tmp_path, "cannot be unpacked .*encrypted")
    odd = bytearray(bundle.read_bytes())
    at = 0
    while (at := odd.find(b"PK\x01\x02", at)) >= 0:
        odd[at + 10] = 9
        at += 4
    (tmp_path / "bad.zip").write_bytes(odd)
    assert_refused(tmp_path / "bad.zip", tmp_path, "cannot be unpacked|cannot be read")


def test_bombs_are_not_unpacked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed_anew(bundle, tmp_path / "bomb.zip", {"artifacts/a": bytes(150_000_000)})
    assert bomb.stat().st_size < 3_000_000
    assert_refused(bomb, tmp_path, "packs far more than a study packs")
    monkeypatch.setattr(bundles, "MOST_BYTES", 100_000)
    assert_refused(bundle, tmp_path, "holds more than")


def test_the_real_size_counts_where_the_declared_one_lies(bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bundles, "_checked", lambda archive, source: archive.infolist())
    monkeypatch.setattr(bundles, "MOST_BYTES", 100_000)
    assert_refused(bundle, tmp_path, "holds more than")


def test_a_database_that_is_none_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    bad = packed_anew(bundle, tmp_path / "bad.zip", {"study.db": b"SQLite format 3\x00" + bytes(5000)})
    assert_refused(bad, tmp_path, "the study in it cannot be read")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a/b"\ntrust_remote_code = true\n', "would execute code that comes with the model 'a/b'"),
        ('name = "vllm:a/b"\nvllm_args = {trust_remote_code = true}\n', "the model 'vllm:a/b'"),
        ('server = "http://stranger.example/v1"\n', "would send every prompt there"),
    ],
)
def test_what_a_strangers_study_file_would_do_is_warned_of(text: str, said: str) -> None:
    assert said in bundles.warnings_of(f"[model]\n{text}")[0]
    assert bundles.warnings_of('[model]\nname = "a/b"\n') == []
    assert "cannot be read" in bundles.warnings_of(text + "[")[0]


def test_the_study_file_that_the_database_remembers_is_warned_of_too(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` and `confirm` read that one."""
    result = bundles.open_bundle(bundle, tmp_path / "opened")
    text = '[model]\nname = "a/b"\ntrust_remote_code = true\n'
    result.opened.study.set_user_attr(STUDY_FILE_ATTRIBUTE, text)
    result.opened.close()
    database = (tmp_path / "opened" / "study.db").read_bytes()
    bad = packed_anew(bundle, tmp_path / "bad.zip", {"study.db": database})
    code, out, _ = run_command(capsys, "import", str(bad), "-o", str(tmp_path / "imported"))
    assert code == 0
    assert "WARNING: its study file says trust_remote_code" in out
