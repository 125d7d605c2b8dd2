from __future__ import annotations

import gc
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy as sa

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.storage import schema, study
from llmsearch_optuna.storage.row_record import RowRecord

FINGERPRINT = {"seed": 42, "metric": {"name": "rouge1", "bounds": [0, 1]}}


def open_at(folder: Path, **changed: Any) -> study.OpenedStudy:
    arguments: dict[str, Any] = {"direction": "maximize", "fingerprint": FINGERPRINT} | changed
    return study.open_study(f"sqlite:///{folder}/deep/study.db", "s", **arguments)


def test_a_new_study_is_made_and_an_old_one_is_found(tmp_path: Path) -> None:
    new = open_at(tmp_path)
    assert not new.resumed
    new.records.record("search", 0, [RowRecord(1, 0, "text")])
    new.close()
    old = open_at(tmp_path)
    assert old.resumed
    assert old.key == new.key
    assert [r.text for r in old.records.rows("search", 0)] == ["text"]


def test_the_default_place_is_the_studies_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened = study.open_study(None, "my study/1", direction="minimize", fingerprint={})
    assert opened.path == Path("studies/my-study-1.db")
    assert opened.artifacts_folder == Path("studies/artifacts")


def test_another_fingerprint_is_refused_with_what_changed(tmp_path: Path) -> None:
    open_at(tmp_path).close()
    other = {"seed": 43, "metric": {"name": "rouge2", "bounds": [0, 1]}, "split": "x" * 200}
    with pytest.raises(StudyError) as caught:
        open_at(tmp_path, fingerprint=other)
    said = str(caught.value)
    assert "metric.name: 'rouge1' -> 'rouge2'" in said
    assert "seed: 42 -> 43" in said
    assert "bounds" not in said
    assert max(map(len, said.splitlines())) < 150


def test_another_direction_is_refused(tmp_path: Path) -> None:
    open_at(tmp_path).close()
    with pytest.raises(StudyError, match="direction='maximize'"):
        open_at(tmp_path, direction="minimize")


def test_other_library_versions_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_at(tmp_path).close()
    monkeypatch.setattr(study, "library_versions", lambda: {"torch": "99.0"})
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        open_at(tmp_path)
    assert len(caplog.records) == 1
    assert "torch" in caplog.text
    assert "99.0" in caplog.text


def test_a_study_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    other = optuna.create_study(storage=url, study_name="s")
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="not made by llmsearch-optuna"):
        study.open_study(url, "s", direction="minimize", fingerprint={})
    assert len(optuna.load_study(study_name="s", storage=url).trials) == 1


def test_a_study_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    opened = open_at(tmp_path)
    opened.close()
    before = psutil.Process().num_fds()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(StudyError, match="there is no study 'x'"):
                study.read_study(f"{opened.path}", "x")
        assert psutil.Process().num_fds() == before
    finally:
        gc.enable()


def test_a_study_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    opened = open_at(tmp_path)
    opened.records.record("search", 0, [RowRecord(0, 0, "text")])
    with opened.database.begin() as connection:
        connection.execute(sa.update(schema.meta).values(schema_version=schema.SCHEMA_VERSION + 1))
    with pytest.raises(StudyError, match="newer llmsearch-optuna.*upgrade with: pip install"):
        open_at(tmp_path)
    with pytest.raises(StudyError, match="newer llmsearch-optuna"):
        study.read_study(f"{opened.path}")
    with opened.database.begin() as connection:  # what the newer version finds
        connection.execute(sa.update(schema.meta).values(schema_version=schema.SCHEMA_VERSION))
    assert [row.text for row in open_at(tmp_path).records.rows("search", 0)] == ["text"]


def test_reading_finds_the_only_study_and_asks_when_there_are_more(tmp_path: Path) -> None:
    path = f"{tmp_path}/two.db"
    for name in ("a", "b"):
        study.open_study(f"sqlite:///{path}", name, direction="minimize", fingerprint={}).close()
    assert study.read_study(path, "b").name == "b"
    with pytest.raises(StudyError, match="it holds 'a', 'b'"):
        study.read_study(path)
    with pytest.raises(StudyError, match="there is no study 'c'"):
        study.read_study(path, "c")
    with pytest.raises(StudyError, match="there is no study at"):
        study.read_study(f"{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_study_that_is_just_being_made_is_not_read_yet(tmp_path: Path) -> None:
    opened = open_at(tmp_path)
    with opened.database.begin() as connection:
        connection.execute(sa.delete(schema.meta))
    with pytest.raises(StudyError, match="just being made; try again in a moment"):
        study.read_study(f"{opened.path}")


def _open_and_count(path: str) -> str:
    opened = study.open_study(f"sqlite:///{path}", "s", direction="maximize", fingerprint=FINGERPRINT)
    return opened.key


def test_processes_that_start_together_make_one_study(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        keys = pool.map(_open_and_count, [f"{tmp_path}/s.db"] * 4)
    assert len(set(keys)) == 1
