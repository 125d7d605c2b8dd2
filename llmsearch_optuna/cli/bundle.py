"""A study as one zip, to be handed on: study file, database, artifacts, report and the recommended parameters.

The database is a consistent copy, also of a study that runs. A bundle comes from somebody else, so nothing of it is
trusted when it is unpacked: only plain files with names that a bundle has, and nothing is written over.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import sqlite3
import stat
import struct
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.artifacts import get_all_artifact_meta

from llmsearch_optuna.errors import InputError, LlmsearchError, StudyError
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.optuna_logging import quiet_optuna
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE, OpenedStudy, library_versions
from llmsearch_optuna.storage.whole_file import folder_beside, is_full, move_into_place, refuse_existing

DATABASE = "study.db"
STUDY_FILE = "study.toml"
FORMAT = 1
MOST_BYTES = 20_000_000_000
MOST_MEMBERS = 200_000
MOST_RATIO = 100
"""Texts and databases are packed to a tenth or so; bombs to a thousandth."""
SMALL_BYTES = 50_000_000
"""So much may be packed as tightly as it likes: empty tables are."""
_MOST_FACTS = 16_000_000
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
    with folder_beside(target, "the bundle") as made:
        refuse_existing(target)
        folder, packed = made / "study", made / "study.zip"
        folder.mkdir()
        _gather(result, folder)
        with zipfile.ZipFile(packed, "x", zipfile.ZIP_DEFLATED) as bundle:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                bundle.write(file, file.relative_to(folder).as_posix())
        move_into_place(packed, target)
    return target


def open_bundle(path: str | Path, folder: str | Path | None = None) -> SearchResult:
    """Unpack a bundle and return the study in it, ready to be read or gone on with.

    It is unpacked and read beside the folder first, and moved there when all of it is well: what goes wrong leaves
    nothing behind.

    Args:
        path: The zip.
        folder: Where to; it must be empty or not there. Default: a folder with the study's name, here.

    Raises:
        InputError: It is no bundle, holds what no bundle holds, is damaged or far too large, or the folder holds
            something already.
    """
    source = Path(path)
    with _bundle_errors(source), zipfile.ZipFile(source) as bundle:
        members = _checked(bundle, source)
        name = _study_name(bundle, source)
        target = Path(folder) if folder is not None else Path(_folder_name(name))
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target} holds something already; give another folder with --output")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".import-", ignore_cleanup_errors=True) as made:
            unpacked = Path(made) / "study"
            _unpack(bundle, members, unpacked, source)
            load_result(str(unpacked / DATABASE), name).opened.close()
            if target.exists():
                target.rmdir()
            unpacked.rename(target)
    return load_result(str(target / DATABASE), name)


def warnings_of(study_file: str) -> list[str]:
    """Return what somebody should know before using a study file that came from somebody else.

    Args:
        study_file: Its text: of the file, or as the study remembers it.
    """
    try:
        model = tomllib.loads(study_file).get("model", {})
    except (ValueError, RecursionError):
        return ["the study file in it cannot be read"]
    if not isinstance(model, dict):
        return []
    found = []
    vllm_args = model.get("vllm_args")
    if model.get("trust_remote_code") or (isinstance(vllm_args, dict) and vllm_args.get("trust_remote_code")):
        found.append(
            "its study file says trust_remote_code: `run`, `check` and `confirm` would execute code that comes with "
            f"the model {model.get('name')!r}; read that code first, or take the line out"
        )
    if model.get("server"):
        found.append(
            f"its study file says server = {model['server']!r}: `run` and `check` would send every prompt there"
        )
    return found


@contextlib.contextmanager
def _bundle_errors(source: Path) -> Iterator[None]:
    """Say in words what zips of any kind raise: damaged, encrypted, compressed in ways that Python does not know."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as problem:
        if is_full(problem):
            raise InputError(
                f"no room to unpack {source}, and nothing is left of it; make some and give the same command again"
            ) from None
        raise InputError(f"{source} cannot be read as a bundle: {problem or 'it ends too early'}") from None
    except StudyError as problem:
        raise InputError(f"{source}: the study in it cannot be read: {problem}") from None
    except LlmsearchError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, UnicodeError, OverflowError, struct.error) as problem:
        raise InputError(f"{source} cannot be unpacked ({problem}); make it with `export STUDY --bundle`") from None


def _unpack(bundle: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], folder: Path, source: Path) -> None:
    left = MOST_BYTES
    for member in members:
        path = folder / member.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        with bundle.open(member) as packed, path.open("xb") as file:
            while chunk := packed.read(1 << 20):
                left -= len(chunk)
                if left < 0:
                    raise InputError(_too_large(source))
                file.write(chunk)


def _too_large(source: Path) -> str:
    return (
        f"{source} holds more than {MOST_BYTES / 1e9:.0f} GB, or packs far more than a study packs; it was not unpacked"
    )


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
        contextlib.closing(opened.database.raw_connection()) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        assert isinstance(source.driver_connection, sqlite3.Connection)
        source.driver_connection.backup(copy)
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
        for table in (schema.meta, schema.items, schema.prompts, schema.rows, schema.looks):
            if not sa.inspect(source).has_table(table.name):  # of an older database
                continue
            stored = {column["name"] for column in sa.inspect(source).get_columns(table.name)}
            columns = [column for column in table.columns if column.name in stored]
            found = source.execute(sa.select(*columns).where(table.c.study == opened.key)).mappings().all()
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
    is_bomb = any(m.file_size > SMALL_BYTES + MOST_RATIO * m.compress_size for m in members)
    if is_bomb or sum(m.file_size for m in members) > MOST_BYTES or len(members) > MOST_MEMBERS:
        raise InputError(_too_large(source))
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
        with bundle.open("bundle.json") as file:
            facts: dict[str, Any] = json.loads(file.read(_MOST_FACTS))
        name, made = str(facts["study"]), int(facts["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise InputError(f"{source} is no bundle of llmsearch-optuna: bundle.json says nothing ({problem})") from None
    if made > FORMAT:
        raise InputError(f"{source} was made by a newer llmsearch-optuna; upgrade to open it")
    return name


def _folder_name(study_name: str) -> str:
    return "".join(_safe(study_name)).strip(".-")[:60] or "study"


def _safe(name: str) -> Iterator[str]:
    return (c if c.isalnum() or c in "._-" else "-" for c in name)
