"""Opens, creates and resumes a study in SQLite or PostgreSQL, and refuses what is not this study.

Optuna's tables are touched through Optuna only; ours are made beside them, once, under a lock. Errors of a
database say what a user can do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage

from llmsearch_optuna.errors import InputError, StudyError, short
from llmsearch_optuna.fingerprint.diff import differences
from llmsearch_optuna.redaction import redacted_study_file
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.address import StorageAddress
from llmsearch_optuna.storage.connection import check_file, closed_on_error, connect, make_folder
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.locks import study_lock
from llmsearch_optuna.storage.optuna_logging import quiet_optuna
from llmsearch_optuna.storage.read_only import may_write
from llmsearch_optuna.storage.records import StudyRecords
from llmsearch_optuna.types import Direction

logger = logging.getLogger("llmsearch_optuna.storage.study")

LONGEST_NAME = 512
"""Of a study, in Optuna's tables."""

KEY_ATTRIBUTE = "llmsearch_key"
STUDY_FILE_ATTRIBUTE = "study_file"
_LIBRARIES = ("llmsearch-optuna", "optuna", "transformers", "tokenizers", "torch", "numpy", "scipy", "sqlalchemy")


class ChangedStudyError(StudyError):
    """A study was started with something else.

    Args:
        name: The study's name.
        changed: What has changed, a line for each.
    """

    def __init__(self, name: str, changed: Sequence[str]) -> None:
        super().__init__(
            f"the study {name!r} was started with something else, and its results would not be comparable:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nGive another study_name= for a new study, or put back what has changed."
        )
        self.name = name
        self.changed = tuple(changed)


@dataclass(frozen=True)
class OpenedStudy:
    """A study that is ready to be read or worked on.

    Attributes:
        name: The study's name.
        key: The study's random key; names its rows in our tables.
        study: Optuna's view of it.
        records: Its rows: completions, scores and looks at the holdout.
        database: SQLAlchemy engine of the database, shared with Optuna.
        artifacts: Where its `.jsonl` files go.
        artifacts_folder: The same, as a folder.
        resumed: Whether it had been made before.
        read_only: Whether its database cannot be written.
    """

    name: str
    key: str
    study: optuna.Study
    records: StudyRecords
    database: sa.Engine
    artifacts: FileSystemArtifactStore
    artifacts_folder: Path
    resumed: bool
    rdb: RDBStorage
    read_only: bool = False

    def trial(self, number: int) -> optuna.Trial:
        """A trial that can be worked on, whoever began it (keeps its number, parameters and reports)."""
        study_id = self.rdb.get_study_id_from_name(self.name)
        return optuna.Trial(self.study, self.rdb.get_trial_id_from_study_id_trial_number(study_id, number))

    def creating(self) -> contextlib.AbstractContextManager[None]:
        """The lock under which new trials get their numbers."""
        return study_lock(self.database, f"trials of {self.key}")

    @property
    def versions(self) -> dict[str, str]:
        """The libraries' versions that it was started with."""
        t = schema.meta
        with self.database.connect() as connection:
            stored = connection.execute(sa.select(t.c.versions).where(t.c.study == self.key)).scalar_one()
        return {name: str(version) for name, version in json.loads(stored).items()}

    @property
    def address(self) -> StorageAddress:
        """Where it lives."""
        return StorageAddress(self.database.url)

    @property
    def url(self) -> str:
        """Where it lives, without what is secret."""
        return str(self.address)

    @property
    def study_file(self) -> str | None:
        """The text of the study file that it was run with, without what is secret; None where there was none."""
        text = self.study.user_attrs.get(STUDY_FILE_ATTRIBUTE)
        return None if text is None else redacted_study_file(str(text))

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a study on a server."""
        return self.address.path

    def close(self) -> None:
        """Let go of the database's connections."""
        self.rdb.remove_session()
        self.database.dispose()


def open_study(
    storage: str | None,
    study_name: str,
    *,
    direction: Direction | Sequence[Direction],
    fingerprint: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> OpenedStudy:
    """Open the study of this name, or make it.

    Args:
        storage: SQLAlchemy URL; None means ``sqlite:///studies/<study_name>.db``.
        study_name: The study's name.
        direction: ``"maximize"`` or ``"minimize"``; one a value where trials have several.
        fingerprint: All that the study's results depend on, as JSON-able values under readable names.
        settings: What people may want to read later; not compared.
        sampler: The user's own sampler, when there is one.
        pruner: The user's own pruner, when there is one.

    Raises:
        StudyError: When the database cannot be used, or holds this study with another fingerprint.
    """
    _check_name(study_name)
    address = StorageAddress.of(storage, study_name)
    with storage_errors(address):
        make_folder(address)
        rdb, engine = connect(address, may_create=True)
        directions = [direction] if isinstance(direction, str) else list(direction)
        with closed_on_error(rdb):
            study = _optuna_study(rdb, study_name, directions, sampler, pruner)
            key, resumed = _meet(rdb, engine, study, study_name, fingerprint, settings or {})
    return _opened(address, study_name, key, study, rdb, engine, resumed)


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise InputError(f"study_name={short(name)} must be a text")
    has_halves = any("\ud800" <= letter <= "\udfff" for letter in name)
    if not name or len(name) > LONGEST_NAME or has_halves or "\x00" in name:
        raise InputError(
            f"study_name={short(name, 60)} cannot name a study: give a text of 1 to {LONGEST_NAME} letters, without "
            "halves of characters"
        )


def prepare_database(storage: str | None, study_name: str) -> None:
    """Make the tables, where they are not there yet, before several processes use them.

    Args:
        storage: SQLAlchemy URL; None means ``sqlite:///studies/<study_name>.db``.
        study_name: The study that is to live there.

    Raises:
        StudyError: When the database cannot be used.
    """
    address = StorageAddress.of(storage, study_name)
    with storage_errors(address):
        make_folder(address)
        _, engine = connect(address, may_create=True)
        engine.dispose()


@dataclass(frozen=True)
class StoredStudy:
    """What a study says of itself before it is opened.

    Attributes:
        fingerprint: What it was started with.
        settings: The same for people, and what its rows were rendered from.
        prompts: Row number -> prompt, where the settings say what these were rendered from; else empty.
    """

    fingerprint: Mapping[str, Any]
    settings: Mapping[str, Any]
    prompts: Mapping[int, str]


def stored_study(storage: str | None, study_name: str) -> StoredStudy | None:
    """Return what a study says of itself; None where there is no such study yet.

    Args:
        storage: SQLAlchemy URL; None means ``sqlite:///studies/<study_name>.db``.
        study_name: The study's name.

    Raises:
        StudyError: When the database cannot be used.
    """
    _check_name(study_name)
    address = StorageAddress.of(storage, study_name)
    path = address.path
    with storage_errors(address):
        if path is not None and not path.exists():
            return None
        rdb, engine = connect(address, may_create=True)
        try:
            keys = {s.study_name: s.user_attrs.get(KEY_ATTRIBUTE) for s in rdb.get_all_studies()}
            return _stored(engine, keys.get(study_name))
        finally:
            rdb.remove_session()
            engine.dispose()


def _stored(engine: sa.Engine, key: str | None) -> StoredStudy | None:
    t, items = schema.meta, schema.items
    with engine.connect() as connection:
        found = connection.execute(sa.select(t.c.fingerprint, t.c.settings).where(t.c.study == key)).first()
        if found is None:
            return None
        fingerprint, settings = json.loads(found.fingerprint), json.loads(found.settings)
        prompts: dict[int, str] = {}
        if settings.get("rendering"):
            others = schema.prompts
            for query in (
                sa.select(items.c.row, items.c.prompt).where(items.c.study == key),
                sa.select(others.c.row, others.c.prompt).where(others.c.study == key, others.c.variant == 0),
            ):
                prompts.update((row, prompt) for row, prompt in connection.execute(query))
    return StoredStudy(fingerprint, settings, prompts)


def read_study(storage: str | None, study_name: str | None = None) -> OpenedStudy:
    """Open a study that exists, to read it; nothing is compared and nothing is written.

    Args:
        storage: SQLAlchemy URL or the path of an SQLite file; None means ``sqlite:///studies/<study_name>.db``.
        study_name: May be left out when the database holds one study only.
    """
    address = StorageAddress.of(storage, study_name)
    with storage_errors(address):
        check_file(address)
        read_only = address.path is not None and not may_write(address.path)
        rdb, engine = connect(address, may_create=False, read_only=read_only)
        with closed_on_error(rdb):
            names = [s.study_name for s in rdb.get_all_studies() if KEY_ATTRIBUTE in s.user_attrs]
            name = _choose_name(names, study_name, address)
            study = optuna.load_study(study_name=name, storage=rdb)
            key = str(study.user_attrs[KEY_ATTRIBUTE])
            if _check_version(engine, key, name) is None:
                raise StudyError(f"the study {name!r} is just being made; try again in a moment, or run it")
    return replace(_opened(address, name, key, study, rdb, engine, True), read_only=read_only)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results may depend on."""
    found = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


def _optuna_study(
    rdb: RDBStorage,
    name: str,
    directions: list[Direction],
    sampler: optuna.samplers.BaseSampler | None,
    pruner: optuna.pruners.BasePruner | None,
) -> optuna.Study:
    with quiet_optuna(), study_lock(rdb.engine, "schema"):
        study = optuna.create_study(
            storage=rdb,
            study_name=name,
            directions=directions,
            # Ours suggest on a view of their own; a sampler that does nothing keeps Optuna from asking one here.
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        if KEY_ATTRIBUTE not in study.user_attrs:
            if study.trials:
                raise StudyError(
                    f"the study {name!r} exists already and was not made by llmsearch-optuna; give another study_name="
                )
            study.set_user_attr(KEY_ATTRIBUTE, uuid.uuid4().hex[:12])
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise StudyError(
            f"the study {name!r} exists with direction={_readable(found)}, not {_readable(directions)}; "
            "give another study_name="
        )
    return study


def _readable(directions: Sequence[str]) -> str:
    return " and ".join(map(repr, directions))


def _meet(
    rdb: RDBStorage,
    engine: sa.Engine,
    study: optuna.Study,
    name: str,
    fingerprint: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> tuple[str, bool]:
    """Store the fingerprint of a new study, compare that of an old one."""
    key = str(study.user_attrs[KEY_ATTRIBUTE])
    t = schema.meta
    value = {
        "study": key,
        "schema_version": schema.SCHEMA_VERSION,
        "fingerprint": json.dumps(fingerprint, sort_keys=True, default=str),
        "versions": json.dumps(library_versions()),
        "settings": json.dumps(settings, default=str),
    }
    with engine.begin() as connection:
        found = connection.execute(sa.select(t).where(t.c.study == key)).one_or_none()
        if found is None:
            schema.upsert(connection, t, [value], replace=False)
            return key, False
    _check_version(engine, key, name)
    changed = differences(json.loads(found.fingerprint), json.loads(json.dumps(fingerprint, default=str)))
    if changed:
        raise ChangedStudyError(name, changed)
    other = differences(json.loads(found.versions), library_versions())
    if other:
        logger.warning("the study %r was started with other library versions: %s", name, "; ".join(other))
    return key, True


def _check_version(engine: sa.Engine, key: str, name: str) -> int | None:
    """The version of the study's tables; None where nothing has been written to them yet."""
    t = schema.meta
    with engine.connect() as connection:
        version: int | None = connection.execute(sa.select(t.c.schema_version).where(t.c.study == key)).scalar()
    if version is not None and version > schema.SCHEMA_VERSION:
        raise StudyError(
            f"the study {name!r} was made by a newer llmsearch-optuna (schema {version}, this one knows "
            f"{schema.SCHEMA_VERSION}); upgrade with: pip install --upgrade llmsearch-optuna"
        )
    return version


def _choose_name(names: list[str], wanted: str | None, address: StorageAddress) -> str:
    where = address.place
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    if not names:
        raise StudyError(f"{where} holds no study of llmsearch-optuna")
    asked = "say which with study_name=" if wanted is None else f"there is no study {wanted!r}"
    raise StudyError(f"{where}: {asked}; it holds {', '.join(map(repr, sorted(names)))}")


def _opened(
    address: StorageAddress, name: str, key: str, study: optuna.Study, rdb: RDBStorage, engine: sa.Engine, resumed: bool
) -> OpenedStudy:
    path = address.path
    folder = (path.parent if path is not None else Path("studies")) / "artifacts"
    return OpenedStudy(
        name=name,
        key=key,
        study=study,
        records=StudyRecords(engine, key),
        database=engine,
        artifacts=FileSystemArtifactStore(str(folder)),
        artifacts_folder=folder,
        resumed=resumed,
        rdb=rdb,
    )
