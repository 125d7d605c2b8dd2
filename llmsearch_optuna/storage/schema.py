"""The tables that stand beside Optuna's own in a study's database.

Only shapes: who may write what and when is decided in `records` and `leases`. All tables carry the study's key, a
random one that Optuna keeps with the study, so that a study that is deleted and made again starts empty.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

SCHEMA_VERSION = 1

metadata = sa.MetaData()


def _key() -> sa.Column[str]:
    return sa.Column("study", sa.String(32), primary_key=True)


meta = sa.Table(
    "llmsearch_meta",
    metadata,
    _key(),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("versions", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
)

items = sa.Table(
    "llmsearch_items",
    metadata,
    _key(),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("part", sa.String(16), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("occurrence", sa.Integer, nullable=False),
)

prompts = sa.Table(
    "llmsearch_prompts",
    metadata,
    _key(),
    sa.Column("variant", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("prompt", sa.Text, nullable=False),
)
"""The prompts of a task that asks in several ways, under all but the first of these, whose prompts are in `items`.

Under variant 0 stand prompts of rows that are in no item, where there are so many rows that making them takes time."""

rows = sa.Table(
    "llmsearch_rows",
    metadata,
    _key(),
    sa.Column("phase", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("replicate", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text),
    sa.Column("token_ids", sa.LargeBinary),
    sa.Column("finish_reason", sa.String(16)),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("score", sa.Double),
    sa.Column("error", sa.Text),
    sa.Column("checksum", sa.BigInteger),
    sa.Column("reasoning", sa.Text),
    sa.Column("reasoning_tokens", sa.Integer),
    sa.Column("logprob", sa.Double),
)
"""`checksum` (see `row_checksum`) is null in rows of the version before it, and databases of versions before have none
of `LATER_COLUMNS` until they are written to."""

LATER_COLUMNS = {
    "checksum": "BIGINT",
    "reasoning": "TEXT",
    "reasoning_tokens": "INTEGER",
    "logprob": "DOUBLE PRECISION",
}
"""Columns of `rows` that were not there from the beginning, with their types."""

workers = sa.Table(
    "llmsearch_workers",
    metadata,
    _key(),
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("lease_end", sa.Double, nullable=False),
)

claims = sa.Table(
    "llmsearch_claims",
    metadata,
    _key(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
)

looks = sa.Table(
    "llmsearch_looks",
    metadata,
    _key(),
    sa.Column("look", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("winner", sa.Integer, nullable=False),
    sa.Column("trials", sa.Integer, nullable=False),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text),
)

batch_sizes = sa.Table(
    "llmsearch_batch_sizes",
    metadata,
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("length_bucket", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("beams", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.Integer, nullable=False),
)


def create_tables(engine: sa.Engine) -> None:
    """Make what is not there yet of our tables and their columns."""
    metadata.create_all(engine)
    there = {column["name"] for column in sa.inspect(engine).get_columns(rows.name)}
    with engine.begin() as connection:
        for name, kind in LATER_COLUMNS.items():
            if name not in there:
                connection.execute(sa.text(f"ALTER TABLE {rows.name} ADD COLUMN {name} {kind}"))


def row_checksum(values: Mapping[str, Any]) -> int:
    """Return the checksum of a row of `rows`: of all its columns but the checksum itself.

    Without reasoning and log-probability it is that of the versions that knew none.

    Args:
        values: Column -> value, as the database gives them.
    """
    checked = [values[column.name] for column in rows.columns if column.name not in LATER_COLUMNS]
    if values.get("reasoning") is not None:
        checked += [values["reasoning"], values["reasoning_tokens"]]
    if values.get("logprob") is not None:
        checked += [values["logprob"]]
    return zlib.crc32(repr([bytes(v) if isinstance(v, memoryview) else v for v in checked]).encode())


def clock(connection: sa.Connection) -> float:
    """Seconds since 1970 by one clock for all who work on a study: the server's, or this machine's for a file."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
    return time.time()


def upsert(
    connection: sa.Connection, table: sa.Table, values: Sequence[Mapping[str, Any]], *, replace: bool = True
) -> None:
    """Insert rows; where the primary key is there already, replace the rest (or keep it)."""
    if not values:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement: Any = insert(table)
    keys = [column.name for column in table.primary_key.columns]
    if replace:
        changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    connection.execute(statement, [dict(value) for value in values])
