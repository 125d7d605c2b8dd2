"""The address of a study's database, which prints itself without its password."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.redaction import HIDDEN, redacted, redacted_address

_LONGEST_FILE_NAME = 240
# What a driver is told in the query and everybody may read; all else may be a secret.
_PUBLIC = frozenset(
    {
        *("host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert", "connect_timeout"),
        *("application_name", "target_session_attrs", "options", "channel_binding", "gssencmode", "keepalives"),
        *("timeout", "mode", "cache", "uri", "immutable"),
    }
)
_SHORTEST_SECRET = 4
"""Shorter ones are hidden in addresses, but not looked for in other texts: they would be found in every word."""


@dataclass(frozen=True)
class StorageAddress:
    """Where a study lives.

    Attributes:
        url: For SQLAlchemy; a password in the query has been moved to where SQLAlchemy hides it.
    """

    url: sa.URL = field(repr=False)

    @classmethod
    def of(cls, storage: str | PathLike[str] | None, study_name: str | None = None) -> StorageAddress:
        """Return the address for what a user gave.

        Args:
            storage: SQLAlchemy URL or the path of an SQLite file; None means ``sqlite:///studies/<study_name>.db``.
            study_name: Names the file where there is no address.

        Raises:
            InputError: It is no address of a database that holds studies.
        """
        if storage is None:
            if study_name is None:
                raise InputError("give the study's name or its storage")
            storage = f"sqlite:///studies/{_file_name(study_name)}.db"
        if isinstance(storage, PathLike):
            storage = os.fspath(storage)
        if not isinstance(storage, str):
            raise InputError(f"storage={short(storage)} must be the path of an SQLite file, or an address")
        if "\x00" in storage or any("\ud800" <= letter <= "\udfff" for letter in storage):
            raise InputError(f"storage={redacted_address(storage)!r} holds a character that no address has")
        if "://" not in storage:
            storage = f"sqlite:///{storage}"
        shown = redacted_address(storage)
        try:
            url = sa.make_url(storage)
            backend = url.get_backend_name()
            url.get_dialect()
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, ValueError):
            # Not chained: what is said below may show the password.
            raise InputError(
                f"storage={shown!r} is not a database address; try sqlite:///studies/name.db, or "
                "postgresql+psycopg://user@host:5432/database"
            ) from None
        if backend not in ("sqlite", "postgresql"):
            raise InputError(f"storage={shown!r}: studies live in SQLite or PostgreSQL, not in {backend}")
        if backend == "sqlite" and url.database in (None, "", ":memory:"):
            raise InputError(
                f"storage={shown!r} would be lost with the process; give a file: sqlite:///studies/name.db"
            )
        if backend == "postgresql" and isinstance(password := url.query.get("password"), str):
            url = url.difference_update_query(["password"]).set(password=password)
        return cls(url)

    def __str__(self) -> str:
        hidden = {name: HIDDEN for name in self.url.query if name not in _PUBLIC}
        return self.url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", HIDDEN)

    def __repr__(self) -> str:
        return f"StorageAddress({str(self)!r})"

    @property
    def with_secrets(self) -> str:
        """The whole address, for whoever opens the database and nobody else."""
        return self.url.render_as_string(hide_password=False)

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def place(self) -> str:
        """The file, or the address of a server, as messages name it."""
        return str(self.path or self)

    def redact(self, text: str) -> str:
        """Return what a driver or a user said about this address, without its secrets."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return redacted(text)

    def _secrets(self) -> set[str]:
        hidden = [value for name, value in self.url.query.items() if name not in _PUBLIC]
        given = [one for value in hidden for one in ((value,) if isinstance(value, str) else value)]
        values = [self.url.password or "", *given]
        written = {form for value in values for form in (value, quote(value, safe=""), quote(value), quote_plus(value))}
        return {secret for secret in written if len(secret) >= _SHORTEST_SECRET}


def _file_name(study_name: str) -> str:
    if not isinstance(study_name, str):
        raise InputError(f"study_name={short(study_name)} must be a text")
    name = re.sub(r"[^\w.-]+", "-", study_name).strip("-") or "study"
    if len(name.encode()) > _LONGEST_FILE_NAME:
        raise InputError(
            f"study_name={study_name[:40] + '…'!r} has {len(study_name)} letters, more than a file's name may have; "
            f"give one of at most {_LONGEST_FILE_NAME} bytes, or storage="
        )
    return name
