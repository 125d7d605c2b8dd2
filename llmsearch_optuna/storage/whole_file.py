"""Files that are there whole or not at all: one that was there before stays until the new one is written."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from llmsearch_optuna.errors import InputError, short

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that has no room."""


def write_whole(path: str | Path, text: str, what: str) -> Path:
    """Write a text file and return its path; the folders above it are made.

    Args:
        path: Where to. Its contents are replaced when all of the text is on the disk, and left alone otherwise.
        text: Its contents.
        what: What it is, for the error, such as ``"the report"``.

    Raises:
        InputError: It cannot be written; says why and what to do.
    """
    if not isinstance(path, str | os.PathLike) or "\x00" in os.fspath(path):
        raise InputError(f"{what} cannot be written to {short(path)}: it is no path")
    with write_errors(what, path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # a device such as /dev/stdout, or a folder
            target.write_text(text, encoding="utf-8")
        else:
            _replace(target.resolve(), text)
    return target


@contextlib.contextmanager
def folder_beside(path: Path, what: str) -> Iterator[Path]:
    """A folder on the same disk as a new file, in which it is made before it is moved to its place; then it is gone.

    Args:
        path: Where the file will be; the folders above it are made.
        what: What it is, for the error.

    Raises:
        InputError: Something cannot be written; says why and what to do.
    """
    with write_errors(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def move_into_place(made: Path, target: Path) -> None:
    """Move a file to where none is yet.

    Raises:
        InputError: There is one.
    """
    try:
        os.link(made, target)
    except OSError:  # there is one, or a file system without hard links
        refuse_existing(target)
        made.rename(target)


def refuse_existing(target: Path) -> None:
    """Raise InputError where a file is there that would be written over."""
    if target.exists():
        raise InputError(f"{target} is there already; give another path or move it away")


@contextlib.contextmanager
def write_errors(what: str, path: str | Path) -> Iterator[None]:
    """Say in words what keeps a file from being written.

    Args:
        what: What it is, such as ``"the report"``.
        path: Where to.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError, sa.exc.OperationalError) as problem:
        said = getattr(problem, "strerror", None) or str(getattr(problem, "orig", None) or problem)
        advice = "; make room and give the same command again" if is_full(problem) else ""
        raise InputError(f"{what} cannot be written to {path}: {said}{advice}") from None


def is_full(problem: BaseException) -> bool:
    """Whether an error of a file or of SQLite says that there is no room left, or may mean it."""
    said = str(problem).lower()
    return getattr(problem, "errno", None) in FULL or "disk is full" in said or "disk i/o error" in said


def _replace(target: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".making-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
