"""Short locks between the processes of one study: a file's lock beside SQLite, an advisory lock in PostgreSQL.

They guard moments (making the schema, giving a trial its number), never a trial's work. Both end with their process.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import sqlalchemy as sa

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def study_lock(engine: sa.Engine, name: str) -> Iterator[None]:
    """Hold the lock of this name for the database behind the engine."""
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_lock(key)))
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))
        return
    # One lock for all names: a file that stays is one file beside the database.
    with Path(f"{engine.url.database}-lock").open("a+b") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":

    def _lock(file: IO[bytes]) -> None:
        while True:
            with contextlib.suppress(OSError):
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                return
            time.sleep(0.05)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
