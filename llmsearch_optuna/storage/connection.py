"""Connects to the database of a study: SQLite's settings, Optuna's tables and ours, and files that hold none.

Which study is in it, and whether it is the right one, is not known here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.address import StorageAddress
from llmsearch_optuna.storage.errors import BUSY_SECONDS, first_line
from llmsearch_optuna.storage.locks import study_lock
from llmsearch_optuna.storage.read_only import read_only_connections, write_ahead_log

logger = logging.getLogger("llmsearch_optuna.storage.connection")

CONNECT_SECONDS = 15
"""So long a server is waited for when a connection is made, unless its address says ``connect_timeout=``."""
_DRIVERS_WITH_TIMEOUT = ("psycopg", "psycopg2")


def connect(address: StorageAddress, *, may_create: bool, read_only: bool = False) -> tuple[RDBStorage, sa.Engine]:
    """Connect to a database, and make what tables it lacks where that is wanted.

    Args:
        address: Where it is.
        may_create: Whether tables may be made; else a database without them is an error.
        read_only: Whether its file cannot be written.

    Returns:
        Optuna's storage, and the SQLAlchemy engine that it shares.

    Raises:
        InputError: The database's driver is not installed.
        StudyError: The database is damaged, or holds something else.
    """
    kwargs = _engine_kwargs(address, read_only)
    lacks_log = may_create and _was_copied_without_log(address)
    try:
        engine = sa.create_engine(address.url, **kwargs)
    except ImportError as error:
        raise InputError(
            f"storage={str(address)!r} needs the package {error.name}, which is not installed; "
            "pip install 'llmsearch-optuna[postgres]', and begin the address with postgresql+psycopg://"
        ) from None
    _set_pragmas(engine, read_only)
    try:
        _check_contents(engine, address, reading=not may_create)
        if lacks_log and not sa.inspect(engine).get_table_names():
            logger.warning(
                "%s is a database without tables, in which a new study begins. %s", address.place, _log_to_copy(address)
            )
        with study_lock(engine, "schema") if may_create else contextlib.nullcontext():
            rdb = _rdb_storage(address, kwargs, may_create, read_only)
            if may_create:
                schema.create_tables(rdb.engine)
    finally:
        engine.dispose()
    return rdb, rdb.engine


@contextlib.contextmanager
def closed_on_error(rdb: RDBStorage) -> Iterator[None]:
    """Let go of the connections where what is done with them fails."""
    try:
        yield
    except BaseException:
        rdb.remove_session()
        rdb.engine.dispose()
        raise


def make_folder(address: StorageAddress) -> None:
    """Make the folder of an SQLite file.

    The file itself is left to SQLite, here and everywhere: a process that opens it and closes it again loses the locks
    of all its connections, and another one that ends takes the write-ahead log away from under them.
    """
    path = address.path
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)


def check_file(address: StorageAddress) -> None:
    """Refuse files that hold nothing to read, with the cause."""
    path = address.path
    if path is None:
        return
    if not path.exists():
        raise StudyError(f"there is no study at {path}; start one with search() or `llmsearch-optuna run`")
    if path.is_dir():
        raise StudyError(f"{path} is a folder; give the file of a study in it")
    if path.stat().st_size == 0:
        raise StudyError(
            f"{path} is empty: nothing was written to it, or it was copied without its contents; "
            "give another storage=, or copy it again"
        )


def _rdb_storage(address: StorageAddress, kwargs: dict[str, Any], may_create: bool, read_only: bool) -> RDBStorage:
    try:
        rdb = RDBStorage(address.with_secrets, engine_kwargs=dict(kwargs), skip_table_creation=not may_create)
    except RuntimeError as error:
        raise StudyError(f"Optuna cannot use the database: {address.redact(first_line(error))}") from error
    # Connections made until here lack the settings below.
    rdb.remove_session()
    rdb.engine.dispose()
    _set_pragmas(rdb.engine, read_only)
    return rdb


def _engine_kwargs(address: StorageAddress, read_only: bool) -> dict[str, Any]:
    path = address.path
    if path is None:
        # Without a limit a server behind a wall is waited for as long as the operating system likes.
        limits = address.url.get_driver_name() in _DRIVERS_WITH_TIMEOUT and "connect_timeout" not in address.url.query
        return {"pool_pre_ping": True} | ({"connect_args": {"connect_timeout": CONNECT_SECONDS}} if limits else {})
    if read_only:
        return {"creator": read_only_connections(path, BUSY_SECONDS)}
    return {"connect_args": {"timeout": BUSY_SECONDS}}


def _set_pragmas(engine: sa.Engine, read_only: bool) -> None:
    if engine.dialect.name != "sqlite":
        return
    pragmas = [f"busy_timeout={BUSY_SECONDS * 1000}"]
    if not read_only:
        pragmas += ["journal_mode=WAL", "synchronous=NORMAL"]

    def set_pragmas(connection: Any, _: Any) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    sa.event.listen(engine, "connect", set_pragmas)


def _check_contents(engine: sa.Engine, address: StorageAddress, *, reading: bool) -> None:
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        sick = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if sick != "ok":
            raise StudyError(
                f"{address.place} is damaged ({sick}); restore a copy, or give another storage= to start afresh. "
                f"{_without_log(address)}`llmsearch-optuna salvage {address.place}` reads what is left of it"
            )
    names = set(sa.inspect(engine).get_table_names())
    if not names and reading:
        raise StudyError(f"{address.place} is a database without tables. {_without_log(address)}".strip())
    if names and "studies" not in names:
        raise StudyError(
            f"{address.place} is a database of something else (it holds {sorted(names)[0]!r}); give another"
        )


def _without_log(address: StorageAddress) -> str:
    """What to say of a file whose write-ahead log is not there although it may have had one."""
    path = address.path
    if path is None or not _has_log(path):
        return ""
    log = write_ahead_log(path)
    if log.exists() and log.stat().st_size > 0:
        return ""
    return f"{_log_to_copy(address)} "


def _log_to_copy(address: StorageAddress) -> str:
    assert address.path is not None
    log = write_ahead_log(address.path).name
    return f"If it was copied: what was written last is in {log}, which is to be copied too."


def _was_copied_without_log(address: StorageAddress) -> bool:
    """Whether there is a file that was written with a log, and neither the log nor the lock of whoever wrote it."""
    path = address.path
    if path is None or not path.is_file() or path.stat().st_size == 0:
        return False
    return bool(_without_log(address)) and not path.with_name(f"{path.name}-lock").exists()


def _has_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"
