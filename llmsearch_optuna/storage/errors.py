"""What databases and disks say, in words that a user can act on.

Only translation: what is opened, and how, stands in `storage`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy as sa

from llmsearch_optuna.errors import StudyError

BUSY_SECONDS = 60

_NOT_WRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def storage_errors(url: sa.URL) -> Iterator[None]:
    """Turn what databases and disks say into a StudyError that says what to do."""
    where = str(sqlite_path(url) or url.render_as_string(hide_password=True))
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
        told = _tell(where, error)
        if told is None:
            raise
        raise StudyError(told) from error


def _tell(where: str, error: BaseException) -> str | None:
    said = " ".join(str(e) for e in _causes(error)).lower()
    numbers = {e.errno for e in _causes(error) if isinstance(e, OSError)}
    if "database is locked" in said or "locktimeout" in said:
        return f"{where} has been locked by another process for more than {BUSY_SECONDS} s; end it and try again"
    if "disk is full" in said or "disk i/o error" in said or numbers & _FULL:
        return f"the disk of {where} is full or failing; make room and run the same command: finished rows are safe"
    if "readonly database" in said or "unable to open" in said or numbers & _NOT_WRITABLE:
        return f"{where} cannot be written; check the folder's permissions or give another storage="
    if "malformed" in said or "not a database" in said:
        return f"{where} is damaged or is no SQLite database; restore a copy, or give another storage= to start afresh"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return None
    if "connect" in said or isinstance(error, ConnectionError):
        return f"the database at {where} does not answer ({first_line(error)}); start it or check the address"
    return f"the database at {where} refused: {first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def sqlite_path(url: sa.URL) -> Path | None:
    """The file behind an SQLite address; None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
