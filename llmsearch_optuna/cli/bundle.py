"""A study as one zip, to be handed on: study file, database, artifacts, report and the recommended parameters.

The database is a consistent copy, also of a study that runs. A bundle comes from somebody else, so nothing of it is
trusted when it is unpacked: only plain files with names that a bundle has, and nothing is written over.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.artifacts import get_all_artifact_meta

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.optuna_logging import quiet_optuna
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE, OpenedStudy, library_versions

DATABASE = "study.db"
STUDY_FILE = "study.toml"
FORMAT = 1
_FILES = {DATABASE, STUDY_FILE, "bundle.json", "report.html", "generation_config.json", "evidence.json"}


def write_bundle(result: SearchResult, path: str | Path) -> Path:
    """Write everything that belongs to a study into one zip, and return its path.

    Args:
        result: The study, finished or not.
        path: Where to; a file that is there is not written over.

    Raises:
        InputError: The file is there already, or cannot be written.
    """
    target = Path(path)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _gather(result, folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as bundle:
                for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                    bundle.write(file, file.relative_to(folder).as_posix())
        except FileExistsError:
            raise InputError(f"{target} is there already; give another --bundle path or move it away") from None
        except OSError as problem:
            raise InputError(f"the bundle cannot be written to {target}: {problem.strerror}") from None
    return target


def open_bundle(path: str | Path, folder: str | Path | None = None) -> SearchResult:
    """Unpack a bundle and return the study in it, ready to be read or gone on with.

    Args:
        path: The zip.
        folder: Where to; it must be empty or not there. Default: a folder with the study's name, here.

    Raises:
        InputError: It is no bundle, holds what no bundle holds, or the folder holds something already.
    """
    source = Path(path)
    try:
        with zipfile.ZipFile(source) as bundle:
            members = _checked(bundle, source)
            name = _study_name(bundle, source)
            target = Path(folder) if folder is not None else Path(_folder_name(name))
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise InputError(f"{target} holds something already; give another folder with --output")
            target.mkdir(parents=True, exist_ok=True)
            for member in members:
                bundle.extract(member, target)
    except (OSError, zipfile.BadZipFile) as problem:
        raise InputError(f"{source} cannot be read as a bundle: {problem}") from None
    return load_result(str(target / DATABASE), name)


def _gather(result: SearchResult, folder: Path) -> None:
    opened = result.opened
    _copy_database(opened, folder / DATABASE)
    _copy_artifacts(result, folder / "artifacts")
    result.save_report(folder / "report.html")
    with contextlib.suppress(StudyError):  # nothing is complete yet, so nothing is recommended
        result.save_generation_config(folder)
    text = opened.study_file
    if text is not None:
        (folder / STUDY_FILE).write_text(text, encoding="utf-8")
    facts = {
        "format": FORMAT,
        "study": opened.name,
        "settings": result.settings,
        "summary": result.summary,
        "versions": library_versions(),
    }
    (folder / "bundle.json").write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")


def _copy_database(opened: OpenedStudy, target: Path) -> None:
    _copy_tables(opened, target)
    text = opened.study_file
    if text != opened.study.user_attrs.get(STUDY_FILE_ATTRIBUTE):  # stored with a password by an older version
        with quiet_optuna():
            copied = optuna.load_study(study_name=opened.name, storage=f"sqlite:///{target}")
            copied.set_user_attr(STUDY_FILE_ATTRIBUTE, text)


def _copy_tables(opened: OpenedStudy, target: Path) -> None:
    if opened.path is None or len(opened.rdb.get_all_studies()) > 1:
        copy_through_optuna(opened, target)
        return
    # SQLite's own backup sees what stands in the write-ahead log, and waits for writers.
    with (
        contextlib.closing(sqlite3.connect(opened.path)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")


def copy_through_optuna(opened: OpenedStudy, target: Path) -> None:
    """Copy one study, and no other, from any database into a new SQLite file: Optuna's tables, then ours."""
    url = f"sqlite:///{target}"
    with quiet_optuna():
        optuna.copy_study(
            from_study_name=opened.name, from_storage=opened.rdb, to_storage=url, to_study_name=opened.name
        )
    engine = sa.create_engine(url)
    schema.metadata.create_all(engine)
    with opened.database.connect() as source, engine.begin() as copy:
        for table in (schema.meta, schema.items, schema.rows, schema.looks):
            found = source.execute(sa.select(table).where(table.c.study == opened.key)).mappings().all()
            schema.upsert(copy, table, [dict(row) for row in found])
    engine.dispose()


def _copy_artifacts(result: SearchResult, folder: Path) -> None:
    opened = result.opened
    of_trials = (get_all_artifact_meta(t, storage=opened.rdb) for t in result.trials)
    for known in [*get_all_artifact_meta(opened.study), *(meta for found in of_trials for meta in found)]:
        file = opened.artifacts_folder / known.artifact_id
        if file.is_file():
            folder.mkdir(exist_ok=True)
            (folder / known.artifact_id).write_bytes(file.read_bytes())


def _checked(bundle: zipfile.ZipFile, source: Path) -> list[zipfile.ZipInfo]:
    members = bundle.infolist()
    for member in members:
        if not _belongs(member):
            raise InputError(f"{source} holds {member.filename!r}, which no bundle holds; it was not unpacked")
    names = {member.filename for member in members}
    if not {DATABASE, "bundle.json"} <= names or len(names) != len(members):
        raise InputError(f"{source} is no bundle of llmsearch-optuna; make one with `export STUDY --bundle FILE.zip`")
    return members


def _belongs(member: zipfile.ZipInfo) -> bool:
    """Whether it is a plain file with a name that a bundle has: no way out of the folder, no link."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if member.is_dir() or kind not in (0, stat.S_IFREG):
        return False
    match PurePosixPath(member.filename).parts:
        case (name,):
            return name in _FILES
        case ("artifacts", name):
            return name == Path(name).name and not any(c in name for c in "\\:") and not name.startswith(".")
    return False


def _study_name(bundle: zipfile.ZipFile, source: Path) -> str:
    try:
        facts: dict[str, Any] = json.loads(bundle.read("bundle.json"))
        name, made = str(facts["study"]), int(facts["format"])
    except (ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{source} is no bundle of llmsearch-optuna: bundle.json says nothing ({problem})") from None
    if made > FORMAT:
        raise InputError(f"{source} was made by a newer llmsearch-optuna; upgrade to open it")
    return name


def _folder_name(study_name: str) -> str:
    return "".join(_safe(study_name)).strip(".-") or "study"


def _safe(name: str) -> Iterator[str]:
    return (c if c.isalnum() or c in "._-" else "-" for c in name)
