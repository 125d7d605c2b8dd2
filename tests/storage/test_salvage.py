"""Real files are damaged; what is left of them is read, gone on with and reported."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmsearch_optuna.cli.app import app
from llmsearch_optuna.errors import InputError, LlmsearchError, StudyError
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.storage.salvage import _readable_rows, salvage
from tests.optimize.studies import run
from tests.synthetic import TextEngine

PAGE = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, n_trials=6).opened.close()
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").close()
    return folder / "s.db"


def facts(path: Path) -> list[object]:
    result = load_result(str(path))
    found = [
        result.summary,
        [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in result.trials],
        [result.records(t.number) for t in result.trials],
        result.verdict,
    ]
    result.opened.close()
    return found


def goes_on(path: Path) -> TextEngine:
    """The engine of the study that goes on with a file until it has all its trials and a report."""
    engine = TextEngine()
    result = run(path.parent, engine, name=path.stem, n_trials=6)
    assert len(result.trials) == 6
    assert result.verdict is not None
    result.save_report(path.with_suffix(".html"))
    result.opened.close()
    return engine


def test_a_file_that_is_well_is_saved_whole(whole: Path, tmp_path: Path) -> None:
    found = salvage(whole, tmp_path / "new.db")
    assert found.lost == []
    assert facts(tmp_path / "new.db") == facts(whole)
    assert goes_on(tmp_path / "new.db").calls == []


def page_of(path: Path, content: bytes) -> int:
    return path.read_bytes().index(content) // PAGE


@pytest.mark.parametrize("damage", ["zeros", "noise"])
def test_a_damaged_page_of_rows_costs_these_rows_only(whole: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(whole.read_bytes())
    with contextlib.closing(sqlite3.connect(whole)) as connection:
        total, text = connection.execute("SELECT COUNT(*), MAX(text) FROM llmsearch_rows").fetchone()
    page = page_of(whole, str(text).encode())
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if damage == "zeros" else random.Random(1).randbytes(PAGE)
    (tmp_path / "s.db").write_bytes(data)
    found = salvage(tmp_path / "s.db", tmp_path / "new.db")
    assert found.lost
    assert total / 3 < found.saved["llmsearch_rows"] < total
    assert (tmp_path / "s.db").read_bytes() == data
    decoded = len(goes_on(tmp_path / "new.db").calls)
    assert 0 < decoded <= total - found.saved["llmsearch_rows"]
    assert facts(tmp_path / "new.db")[1:] == facts(whole)[1:], "the same study as one that nothing happened to"


def test_a_letter_that_changed_is_found_by_its_checksum(whole: Path, tmp_path: Path) -> None:
    shutil.copyfile(whole, tmp_path / "s.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute("UPDATE llmsearch_rows SET text = '0.9' || substr(text, 4) WHERE number = 1 AND \"row\" = 5")
        changed = connection.total_changes
    found = salvage(tmp_path / "s.db", tmp_path / "new.db")
    assert changed > 0
    assert sum("(row 5 of trial 1" in line for line in found.lost) == changed
    goes_on(tmp_path / "new.db")
    assert facts(tmp_path / "new.db")[1:] == facts(whole)[1:]


@pytest.mark.parametrize("column", ["params", "fingerprint"])
def test_a_damaged_cell_of_a_trial_costs_this_trial(whole: Path, tmp_path: Path, column: str) -> None:
    shutil.copyfile(whole, tmp_path / "s.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = CAST(x'7bff22' AS TEXT) WHERE key = ? AND trial_id = 4",
            (column,),
        )
    found = salvage(tmp_path / "s.db", tmp_path / "new.db")
    assert "trial 3: what it decoded with" in found.lost
    result = load_result(str(tmp_path / "new.db"))
    assert result.failures == {"lost: the file of the study was damaged": [3]}
    result.opened.close()
    goes_on(tmp_path / "new.db")


def test_files_that_are_cut_or_overwritten_anywhere_end_in_a_study_or_in_words(whole: Path, tmp_path: Path) -> None:
    data, draw, saved = whole.read_bytes(), random.Random(7), 0
    for number in range(12):
        broken = bytearray(data)
        if number % 2:
            del broken[draw.randrange(len(broken)) :]
        else:
            for _ in range(draw.randint(1, 4)):
                at = draw.randrange(len(broken) // PAGE) * PAGE
                broken[at : at + PAGE] = draw.randbytes(PAGE)
        path, new = tmp_path / f"{number}.db", tmp_path / f"{number}-new.db"
        path.write_bytes(broken)
        try:
            salvage(path, new)
            result = load_result(str(new))
        except StudyError:
            continue
        saved += 1
        result.trials_dataframe()
        assert isinstance(result.summary, str)
        result.opened.close()
        with contextlib.suppress(LlmsearchError):  # such as a study whose settings are lost
            goes_on(new)
    assert saved >= 4


def test_a_trial_that_lost_one_replicate_of_a_row_runs_again_where_it_is_missing(tmp_path: Path) -> None:
    result = run(tmp_path, n_trials=4, replicates=2)
    sampled = next(t.number for t in result.trials if len(result.records(t.number)) > len(result.row_scores(t.number)))
    result.opened.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute(
            "DELETE FROM llmsearch_rows WHERE rowid = (SELECT MIN(rowid) FROM llmsearch_rows "
            "WHERE number = ? AND phase = 'search' AND replicate = 1)",
            (sampled,),
        ).close()
        connection.commit()
    found = salvage(tmp_path / "s.db", tmp_path / "new.db")
    assert f"trial {sampled}: rows or its value; it runs again where they are missing" in found.lost
    engine = TextEngine()
    again = run(tmp_path, engine, name="new", n_trials=4, replicates=2)
    assert again.trials[sampled].state.is_finished()
    assert len(engine.calls) == 1


class Misleading:
    """A table whose damaged page holds lower row ids than were asked for, and then raises."""

    def execute(self, select: str, values: tuple[int, ...] = ()) -> Iterator[tuple[int, str]]:
        if "max(rowid)" in select:
            return Rows(iter([(1000,)]))
        return Rows(self._rows(values[0]))

    def _rows(self, after: int) -> Iterator[tuple[int, str]]:
        if after < 900:
            yield (0, "from the damaged page")
            raise sqlite3.DatabaseError("database disk image is malformed")
        yield from [(rowid, "whole") for rowid in range(after + 1, 1001)]


class Rows:
    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)


def test_row_ids_that_lead_back_do_not_keep_it_for_ever() -> None:
    lost: list[str] = []
    found = [value for (value,) in _readable_rows(Misleading(), "t", ["value"], lost)]  # type: ignore[arg-type]
    assert len(lost) < 20
    assert found.count("from the damaged page") < 20


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.7, 0.75, 0.85, 0.9, 0.95])
def test_a_file_that_is_cut_anywhere_is_read_to_an_end(whole: Path, tmp_path: Path, share: float) -> None:
    text = whole.read_bytes()
    (tmp_path / "s.db").write_bytes(text[: int(len(text) * share)])
    with contextlib.suppress(StudyError):
        assert salvage(tmp_path / "s.db", tmp_path / "new.db").lost


def test_the_command_says_what_was_saved_and_lost(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(whole.read_bytes()[: whole.stat().st_size * 4 // 5])
    outcome = CliRunner().invoke(app, ["salvage", str(tmp_path / "s.db")])
    assert outcome.exit_code == 0, outcome.output
    assert f"{tmp_path}/s.salvaged.db: " in outcome.output
    assert "lost: " in outcome.output
    again = CliRunner().invoke(app, ["salvage", str(tmp_path / "s.db")])
    assert again.exit_code == 1


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_bytes(b"this is a text " * 1000)
    with pytest.raises(StudyError, match="nothing can be read"):
        salvage(tmp_path / "text.db", tmp_path / "new.db")
    with pytest.raises(InputError, match="no file"):
        salvage(tmp_path / "none.db", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
