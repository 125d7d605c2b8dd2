"""Opens SQLite files that may be read but not written: on a read-only medium, or in somebody else's folder."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

Connect = Callable[[], sqlite3.Connection]

_INDEX_BYTES = 1 << 16
"""What SQLite takes at least to open a database with a write-ahead log."""


def may_write(path: Path) -> bool:
    """Whether SQLite can write this file, and the log that it keeps beside it: also to read it, it needs that index."""
    has_room = shutil.disk_usage(path.parent).free >= _INDEX_BYTES
    return has_room and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def write_ahead_log(path: Path) -> Path:
    """The log beside a database; what was committed last may stand there only."""
    return path.with_name(f"{path.name}-wal")


def read_only_connections(path: Path, timeout: float) -> Connect:
    """Return what opens connections that read a file as it is, its write-ahead log included.

    Args:
        path: The SQLite file.
        timeout: Seconds to wait for somebody who writes.
    """
    log = write_ahead_log(path)
    if not log.exists() or log.stat().st_size == 0:
        return _connections(path, "mode=ro&immutable=1", timeout)
    connect = _connections(path, "mode=ro", timeout)
    try:
        connection = connect()
        connection.execute("SELECT 1 FROM sqlite_master").close()
        connection.close()
    except sqlite3.OperationalError:
        # SQLite reads a log only with its index, which it may not make here.
        return _connections_to_copy(path, timeout)
    return connect


def copy_with_log(path: Path, folder: Path) -> Path:
    """Copy a database and its write-ahead log, and return the copy."""
    copy = folder / path.name
    shutil.copyfile(path, copy)
    log = write_ahead_log(path)
    if log.exists():
        shutil.copyfile(log, write_ahead_log(copy))
    return copy


def _connections(path: Path, mode: str, timeout: float) -> Connect:
    uri = f"{path.resolve().as_uri()}?{mode}"
    return lambda: sqlite3.connect(uri, uri=True, timeout=timeout, check_same_thread=False)


def _connections_to_copy(path: Path, timeout: float) -> Connect:
    folder = tempfile.TemporaryDirectory(prefix="llmsearch-read-only-", ignore_cleanup_errors=True)
    copy = copy_with_log(path, Path(folder.name))

    def connect() -> sqlite3.Connection:
        # The folder lives as long as this function does.
        return sqlite3.connect(Path(folder.name) / copy.name, timeout=timeout, check_same_thread=False)

    return connect
