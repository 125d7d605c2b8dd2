"""Reads what is left of a damaged or truncated SQLite file into a new database, and says what was lost.

Python's SQLite has no ``.recover``; tables are read row by row instead, and what raises is stepped over. Nothing is
written to the damaged file, it is not even opened: a copy is. Rows are kept when their checksum holds; a trial that
misses something is put back to where it can be gone on with, so that only what was lost is decoded again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsearch_optuna.engine.request import MOST_REPLICATES
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.read_only import copy_with_log
from llmsearch_optuna.storage.study import KEY_ATTRIBUTE, prepare_database
from llmsearch_optuna.storage.whole_file import folder_beside, is_full, move_into_place, refuse_existing

_LEFT_OUT = {"version_info", "alembic_version", "llmsearch_workers", "llmsearch_claims", "trial_heartbeats"}
"""What a new database has already, and who worked on the old one."""
_LARGEST_STEP = 1 << 40


@dataclass
class Salvage:
    """What was saved, and what was not.

    Attributes:
        saved: Table -> rows that were read and are whole.
        lost: One sentence for everything that is not there any more.
    """

    saved: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


def salvage(damaged: Path, target: Path) -> Salvage:
    """Write what can be read of a damaged study database into a new one.

    Args:
        damaged: The SQLite file; a write-ahead log beside it is read too.
        target: The new file.

    Raises:
        InputError: There is no such file, or the new one is there already.
        StudyError: Nothing can be read.
    """
    if not damaged.is_file():
        raise InputError(f"there is no file {damaged}")
    found = Salvage()
    refuse_existing(target)
    with folder_beside(target, "what is left") as folder:
        copy, made = copy_with_log(damaged, folder), folder / "salvaged" / "study.db"
        prepare_database(str(made), "salvaged")
        with (
            contextlib.closing(sqlite3.connect(copy)) as source,
            contextlib.closing(sqlite3.connect(made)) as new,
        ):
            source.text_factory = bytes
            for table in _tables(source, damaged):
                _copy_table(source, new, table, found)
            if not found.saved["studies"]:
                raise StudyError(f"nothing of a study can be read from {damaged}: {'; '.join(found.lost)}")
            _mend(new, found)
            new.commit()
            new.execute("PRAGMA journal_mode=DELETE").close()
        move_into_place(made, target)
    return found


def _tables(source: sqlite3.Connection, damaged: Path) -> list[str]:
    try:
        source.execute("PRAGMA writable_schema=ON").close()  # reads on where a table's description is damaged
        found = source.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except sqlite3.DatabaseError as error:
        raise StudyError(f"nothing can be read from {damaged}, its first page is damaged: {error}") from None
    return [name.decode("utf-8", "replace") for (name,) in found]


# Reading


def _copy_table(source: sqlite3.Connection, new: sqlite3.Connection, table: str, found: Salvage) -> None:
    columns = [str(c[1]) for c in new.execute(f'PRAGMA table_info("{table}")')]
    if table in _LEFT_OUT or not columns:
        return
    try:
        there = [c[1].decode() for c in source.execute(f'PRAGMA table_info("{table}")')]
    except sqlite3.DatabaseError as error:
        found.lost.append(f"{table}: all of it ({error})")
        return
    shared = [column for column in columns if column in there]
    insert = f'INSERT OR IGNORE INTO "{table}" ({", ".join(_quoted(shared))}) VALUES ({", ".join("?" * len(shared))})'
    for values in _readable_rows(source, table, shared, found.lost):
        row = _decoded(dict(zip(shared, values, strict=True)))
        if row is None or not _is_whole(table, row):
            found.lost.append(f"{table}: a damaged row{_named(table, values)}")
            continue
        try:
            found.saved[table] += new.execute(insert, [row[column] for column in shared]).rowcount
        except sqlite3.Error as error:
            if is_full(error):  # then it is not the row that is damaged
                raise
            found.lost.append(f"{table}: a row{_named(table, values)} ({error})")


def _readable_rows(
    source: sqlite3.Connection, table: str, columns: list[str], lost: list[str]
) -> Iterator[tuple[Any, ...]]:
    """All rows that can be read, in the order in which they were written; where one raises, on with the next.

    A damaged page may hold row ids that are lower than those before it, so what was read never leads back; where the
    same place raises again and again the steps over it grow.
    """
    select = f'SELECT rowid, {", ".join(_quoted(columns))} FROM "{table}" NOT INDEXED WHERE rowid > ? ORDER BY rowid'
    last, least = 0, 0
    while True:
        start = last
        try:
            for rowid, *values in source.execute(select, (last,)):
                last = max(last, rowid)
                yield tuple(values)
        except sqlite3.DatabaseError as error:
            least = 0 if last > start else max(1, 2 * least)
            step = _steps_over(source, table, select, last)
            if step is None:
                lost.append(f"{table}: everything after {last or 'its beginning'} rows ({error})")
                return
            step = max(step, least)
            lost.append(f"{table}: up to {step} rows after the first {last} ({error})")
            last += step
        else:
            return


def _steps_over(source: sqlite3.Connection, table: str, select: str, last: int) -> int | None:
    """How many row ids are to be left out until something can be read again; None where nothing can."""
    end = _last_rowid(source, table)
    step = 1
    while not _reads(source, select, last + step):
        step *= 2
        if step > _LARGEST_STEP or (end is not None and last + step > 2 * end + 2):
            return None
    low = step // 2
    while step - low > 1:
        middle = (low + step) // 2
        if _reads(source, select, last + middle):
            step = middle
        else:
            low = middle
    return step


def _last_rowid(source: sqlite3.Connection, table: str) -> int | None:
    with contextlib.suppress(sqlite3.DatabaseError):
        found: int | None = source.execute(f'SELECT max(rowid) FROM "{table}" NOT INDEXED').fetchone()[0]
        return found
    return None


def _reads(source: sqlite3.Connection, select: str, after: int) -> bool:
    try:
        source.execute(select, (after,)).fetchone()
    except sqlite3.DatabaseError:
        return False
    return True


# What is whole


def _decoded(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row with its texts as texts; None where one is none."""
    decoded: dict[str, Any] = {}
    for column, value in row.items():
        try:
            decoded[column] = value.decode() if isinstance(value, bytes) and column != "token_ids" else value
        except UnicodeDecodeError:
            return None
    return decoded


def _is_whole(table: str, row: Mapping[str, Any]) -> bool:
    if table == schema.rows.name:
        checksum = row.get("checksum")
        return checksum is None or checksum == schema.row_checksum(row)
    json_columns = {
        "llmsearch_meta": ("fingerprint", "versions", "settings"),
        "llmsearch_items": ("reference", "columns"),
        "llmsearch_looks": ("selection", "verdict"),
    }.get(table, tuple(column for column in row if column.endswith("_json")))
    return all(row[column] is None or _is_json(row[column]) for column in json_columns)


def _is_json(text: Any) -> bool:
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _quoted(columns: list[str]) -> list[str]:
    return [f'"{column}"' for column in columns]


def _named(table: str, values: tuple[Any, ...]) -> str:
    if table != schema.rows.name:
        return ""
    _, phase, number, row, *_ = values
    phase = phase.decode("utf-8", "replace") if isinstance(phase, bytes) else phase
    return f" (row {row} of trial {number}, {phase})"


# What goes on from there


def _mend(new: sqlite3.Connection, found: Salvage) -> None:
    _restore_keys(new, found)
    _drop_rows_without_items(new, found)
    _fill_numbers(new, found)
    _reopen_trials(new, found)
    _drop_looks(new, found)


def _restore_keys(new: sqlite3.Connection, found: Salvage) -> None:
    """Give the only study its key back: our tables have it too."""
    studies = [i for (i,) in new.execute("SELECT study_id FROM studies")]
    named = new.execute("SELECT study_id FROM study_user_attributes WHERE key = ?", (KEY_ATTRIBUTE,)).fetchall()
    keys = [key for (key,) in new.execute("SELECT study FROM llmsearch_meta")]
    if not keys:
        found.lost.append("llmsearch_meta: what the study was started with; trials and rows can be read by hand only")
    if not named and len(studies) == len(keys) == 1:
        new.execute(
            "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (?, ?, ?)",
            (studies[0], KEY_ATTRIBUTE, json.dumps(keys[0])),
        )


def _drop_rows_without_items(new: sqlite3.Connection, found: Salvage) -> None:
    cursor = new.execute(
        "DELETE FROM llmsearch_rows WHERE NOT EXISTS (SELECT 1 FROM llmsearch_items i "
        'WHERE i.study = llmsearch_rows.study AND i."row" = llmsearch_rows."row")'
    )
    if cursor.rowcount > 0:
        found.saved[schema.rows.name] -= cursor.rowcount
        found.lost.append(f"llmsearch_rows: {cursor.rowcount} rows whose prompts are lost")


def _fill_numbers(new: sqlite3.Connection, found: Salvage) -> None:
    """Put a failed trial where one is lost, or cannot be told: trials are known by their place."""
    for (study,) in new.execute("SELECT study_id FROM studies").fetchall():
        numbers = {n for (n,) in new.execute("SELECT number FROM trials WHERE study_id = ?", (study,))}
        for number in sorted(set(range(max(numbers, default=-1) + 1)) - numbers):
            now = "2000-01-01 00:00:00.000000"
            cursor = new.execute(
                "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
                "VALUES (?, ?, 'FAIL', ?, ?)",
                (number, study, now, now),
            )
            _describe_lost(new, int(cursor.lastrowid or 0), number)
            found.lost.append(f"trial {number}: all of it")
    for trial, number, state in new.execute("SELECT trial_id, number, state FROM trials").fetchall():
        keys = {
            k for (k,) in new.execute("SELECT key FROM trial_user_attributes WHERE trial_id = ?", (trial,)).fetchall()
        }
        if not {"params", "fingerprint", "role", "kind"} <= keys and state != "WAITING":
            new.execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = ?", (trial,))
            _clear_values(new, trial)
            _describe_lost(new, trial, number)
            found.lost.append(f"trial {number}: what it decoded with")


def _describe_lost(new: sqlite3.Connection, trial: int, number: int) -> None:
    facts = {
        "params": {},
        "kind": "lost",
        "fingerprint": f"lost-{number}",
        "role": "searched",
        "fail_reason": "lost: the file of the study was damaged",
    }
    new.executemany(
        "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
        [(trial, key, json.dumps(value)) for key, value in facts.items()],
    )


def _clear_values(new: sqlite3.Connection, trial: int) -> None:
    for table in ("trial_values", "trial_intermediate_values"):
        new.execute(f"DELETE FROM {table} WHERE trial_id = ?", (trial,))


def _reopen_trials(new: sqlite3.Connection, found: Salvage) -> None:
    """Let trials that miss rows or their value run on: what is there of them is not decoded again."""
    for trial, number, study, state in new.execute(
        "SELECT t.trial_id, t.number, a.value_json, t.state FROM trials t JOIN study_user_attributes a "
        "ON a.study_id = t.study_id AND a.key = ? WHERE t.state IN ('COMPLETE', 'PRUNED')",
        (KEY_ATTRIBUTE,),
    ).fetchall():
        key = json.loads(study)
        has_value = new.execute("SELECT COUNT(*) FROM trial_values WHERE trial_id = ?", (trial,)).fetchone()[0]
        wanted = _rows_wanted(new, trial)
        if (state == "COMPLETE" and not has_value) or wanted is None or _whole_rows(new, key, number, wanted) < wanted:
            new.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = ?", (trial,))
            _clear_values(new, trial)
            found.lost.append(f"trial {number}: rows or its value; it runs again where they are missing")


def _whole_rows(new: sqlite3.Connection, key: str, number: int, wanted: int) -> int:
    """How many of the first rows that a trial's value rests on are there, with all their replicates and samples."""
    of_trial = "study = :study AND number = :number AND phase = 'search'"
    found: int = new.execute(
        f"""
        SELECT COUNT(*) FROM (
            SELECT 1 FROM llmsearch_rows r JOIN llmsearch_items i ON i.study = r.study AND i."row" = r."row"
            WHERE r.{of_trial.replace(" AND ", " AND r.")} AND i.part = 'search' AND i.position < :wanted
            GROUP BY r."row"
            HAVING COUNT(*) >= (
                SELECT (1 + MAX(replicate % {MOST_REPLICATES})) * (1 + MAX(replicate / {MOST_REPLICATES}))
                FROM llmsearch_rows WHERE {of_trial}
            )
        )
        """,
        {"study": key, "number": number, "wanted": wanted},
    ).fetchone()[0]
    return found


def _drop_looks(new: sqlite3.Connection, found: Salvage) -> None:
    """A choice and a verdict stand on all rows; going on makes them again."""
    if any(line.startswith((schema.rows.name, schema.items.name, "trial ")) for line in found.lost):
        found.saved[schema.looks.name] = 0
        if new.execute("DELETE FROM llmsearch_looks").rowcount > 0:
            found.lost.append("the verdict, since rows that it rests on may be lost; going on decides again")


def _rows_wanted(new: sqlite3.Connection, trial: int) -> int | None:
    stored = new.execute(
        "SELECT value_json FROM trial_user_attributes WHERE trial_id = ? AND key = 'rows'", (trial,)
    ).fetchone()
    with contextlib.suppress(ValueError, IndexError):
        return None if stored is None else int(str(json.loads(stored[0])).split()[0])
    return None
