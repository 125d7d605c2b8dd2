"""Errors of databases and disks, as a StudyError that says what to do.

Only translation: what is opened, and how, stands in `study`.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator

import optuna
import sqlalchemy as sa

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.storage.address import StorageAddress
from llmsearch_optuna.storage.whole_file import FULL

BUSY_SECONDS = 60

_NOT_WRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR}
_MISSING_TABLE = re.compile(r"no such table|relation .* does not exist|undefinedtable")


@contextlib.contextmanager
def storage_errors(address: StorageAddress) -> Iterator[None]:
    """Turn errors of databases and disks into a StudyError that says what to do."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
        told = storage_problem(address.place, error)
        if told is None:
            raise
        raise StudyError(address.redact(told)) from error


def storage_problem(where: str, error: BaseException) -> str | None:
    """Return what a user is told of an error of a database or a disk; None of other errors of the system.

    Args:
        where: The file, or the address of a server, without its secrets.
        error: What was raised.
    """
    said = " ".join(str(e) for e in _causes(error)).lower()
    numbers = {e.errno for e in _causes(error) if isinstance(e, OSError)}
    if "database is locked" in said or "locktimeout" in said:
        return f"{where} has been locked by another process for more than {BUSY_SECONDS} s; end it and try again"
    if "disk is full" in said or "disk i/o error" in said or numbers & FULL:
        return (
            f"the disk of {where}, or that of temporary files ({tempfile.gettempdir()}), is full or failing; make room "
            "and run the same command: finished rows are safe"
        )
    if errno.ENAMETOOLONG in numbers:
        return f"{where} is too long for a file's name; give a shorter study_name= or storage="
    if "readonly database" in said or "unable to open" in said or numbers & _NOT_WRITABLE:
        return f"{where} cannot be written; check the folder's permissions or give another storage="
    if "malformed" in said or "not a database" in said:
        return (
            f"{where} is damaged or is no SQLite database; restore a copy, or give another storage= to start afresh; "
            f"`llmsearch-optuna salvage {where}` reads what is left of it"
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return None
    if isinstance(error, sa.exc.ProgrammingError | sa.exc.OperationalError) and _MISSING_TABLE.search(said):
        return f"{where} holds no study of llmsearch-optuna ({first_line(error)}); give the address of one"
    if any(_is_about_connecting(e) for e in _causes(error)):
        return f"the database at {where} does not answer ({first_line(error)}); start it or check the address"
    return f"the database at {where} refused: {first_line(error)}"


def _is_about_connecting(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or any(
        word in str(error).lower().split("[sql:")[0] for word in ("connect", "resolve host", "translate host name")
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, in the words of whoever met it: without SQL, and without who passed it on.

    >>> first_line(sa.exc.OperationalError("SELECT 1", {}, Exception("no such table")))
    'no such table'
    """
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        return first_line(error.orig)
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        return first_line(error.__cause__)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
