"""Leases of workers and their claims on trials, with a fencing token that tells a successor from a predecessor.

A claim belongs to a worker. It is taken over when its worker has let its lease run out, has closed its session, or is a
process of this machine that is gone. Leases are read by the database's clock, so that machines need not agree on the
time; a lease that was not renewed for its whole time, as this process measures it, has run out whatever that clock
says, since it may have been set back. The worker that takes over increments the token, and every commit of a trial's
rows checks the token first: a worker that was only slow finds its claim lost and drops its trial, it never writes over
its successor. Nothing here knows what a trial is, and nothing that a study decides may depend on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from types import TracebackType

import psutil
import sqlalchemy as sa

from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.errors import first_line

logger = logging.getLogger("llmsearch_optuna.storage.leases")

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0

# Sessions of this process that have not ended: a session that is not here although its pid is ours is dead.
_living: set[str] = set()


class ClaimLostError(Exception):
    """The work was taken over by another worker; the work is dropped here without a message."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A piece of work that is ours as long as the token stands in the table."""

    study_key: str
    number: int
    owner: str
    token: int

    def check(self, connection: sa.Connection) -> None:
        """Raise ClaimLostError unless the claim still is ours; it stays so until the transaction ends."""
        t = schema.claims
        mine = (
            sa.update(t)
            .where(
                t.c.study == self.study_key,
                t.c.number == self.number,
                t.c.owner == self.owner,
                t.c.token == self.token,
            )
            .values(token=self.token)
        )
        if connection.execute(mine).rowcount != 1:
            raise ClaimLostError(f"trial {self.number} was taken over")


class Session:
    """One process (or thread) at work on a study; a context manager that keeps its lease alive.

    Args:
        engine: SQLAlchemy engine of the study's database.
        study_key: The study's random key.
    """

    def __init__(
        self,
        engine: sa.Engine,
        study_key: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._engine = engine
        self._key = study_key
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._seen: dict[str, tuple[float, float]] = {}
        self._warned = False
        self.owner = uuid.uuid4().hex

    def __enter__(self) -> Session:
        _living.add(self.owner)
        self._renew()
        self._heart = threading.Thread(target=self._beat, name="llmsearch-heartbeat", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._heart is not None:
            self._heart.join(timeout=self._heartbeat_seconds)
        _living.discard(self.owner)
        # On a broken database the lease runs out by itself; what happened there must not be hidden by this.
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            t = schema.workers
            with self._engine.begin() as connection:
                connection.execute(sa.delete(t).where(t.c.study == self._key, t.c.owner == self.owner))

    def claim(self, number: int) -> Claim | None:
        """Claim a piece of work that nobody alive holds; None when somebody else has it (or was faster)."""
        t = schema.claims
        holder = self._holder(number)
        if holder is None:
            values = {"study": self._key, "number": number, "owner": self.owner, "token": 1}
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(t).values(**values))
            except sa.exc.IntegrityError:
                return None
            return Claim(self._key, number, self.owner, 1)
        owner, token = holder
        if owner == self.owner or owner in self.live_owners():
            return None
        with self._engine.begin() as connection:
            taken = connection.execute(
                sa.update(t)
                .where(t.c.study == self._key, t.c.number == number, t.c.owner == owner, t.c.token == token)
                .values(owner=self.owner, token=token + 1)
            )
        return Claim(self._key, number, self.owner, token + 1) if taken.rowcount == 1 else None

    def live_owners(self) -> set[str]:
        """Owners whose lease runs and whose process, where it can be seen from here, is alive; this one included."""
        live = live_leases(self._engine, self._key)
        return {owner for owner, lease in live.items() if self._is_kept(owner, lease)} | {self.owner}

    def _is_kept(self, owner: str, lease: Lease) -> bool:
        """Whether a lease has been renewed within its time, by the monotonic clock."""
        now = time.monotonic()
        end, since = self._seen.get(owner, (lease.end, now))
        self._seen[owner] = (lease.end, since if end == lease.end else now)
        if lease.left > 2 * self._lease_seconds and not self._warned:
            self._warned = True
            logger.warning(
                "the lease of a worker on %s ends in %.0f s only: a clock was set back; if it is not renewed within "
                "%.0f s, the worker is taken for dead and its work is taken over",
                lease.host, lease.left, self._lease_seconds,
            )  # fmt: skip
        return now - self._seen[owner][1] <= self._lease_seconds

    def _holder(self, number: int) -> tuple[str, int] | None:
        t = schema.claims
        query = sa.select(t.c.owner, t.c.token).where(t.c.study == self._key, t.c.number == number)
        with self._engine.connect() as connection:
            found = connection.execute(query).one_or_none()
        return None if found is None else (found.owner, found.token)

    def _renew(self) -> None:
        with self._engine.begin() as connection:
            value = {
                "study": self._key,
                "owner": self.owner,
                "host": _this_host(),
                "pid": os.getpid(),
                "started": psutil.Process().create_time(),
                "lease_end": schema.clock(connection) + self._lease_seconds,
            }
            schema.upsert(connection, schema.workers, [value])

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_seconds):
            try:
                self._renew()
            except Exception as error:  # of the database, or of the system: a heart that stops loses the trial
                logger.warning("the lease could not be renewed (%s); trying again", first_line(error))


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a worker, by the clock of the database.

    Attributes:
        end: When it ends; every renewal moves it.
        left: Seconds until then.
        host: Where the worker runs.
        started: When its process began.
    """

    end: float
    left: float
    host: str
    started: float


def live_workers(engine: sa.Engine, study_key: str) -> dict[str, float]:
    """Owner -> when its process began, of those whose lease runs and who, where it can be seen from here, are alive."""
    return {owner: lease.started for owner, lease in live_leases(engine, study_key).items()}


def live_leases(engine: sa.Engine, study_key: str) -> dict[str, Lease]:
    """Owner -> lease, of those whose lease runs and who, where it can be seen from here, are alive."""
    t = schema.workers
    with engine.connect() as connection:
        found = connection.execute(sa.select(t).where(t.c.study == study_key)).all()
        now = schema.clock(connection)
    return {
        r.owner: Lease(float(r.lease_end), float(r.lease_end - now), str(r.host).partition(" ")[0], float(r.started))
        for r in found
        if r.lease_end > now and not _is_gone(r.owner, r.host, r.pid, r.started)
    }


def _is_gone(owner: str, host: str, pid: int, started: float) -> bool:
    if host != _this_host():
        return False
    if pid == os.getpid():
        return owner not in _living
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(float(process.create_time()) - started) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _this_host() -> str:
    # Containers may share a host's name without seeing each other's processes.
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()
