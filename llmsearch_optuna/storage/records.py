"""Every completion and every score, by row, beside Optuna's tables in the study's own database.

What is recorded is never decoded again. Nothing is decided here, and Optuna's tables are not touched.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import sqlalchemy as sa

from llmsearch_optuna.engine.request import MOST_REPLICATES, replicate_and_sample
from llmsearch_optuna.fingerprint.json_text import json_text
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.row_record import RowRecord, gathered, storable

Phase = Literal["search", "finalists", "holdout", "confirm"]
Part = Literal["search", "holdout"]


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the task as the study sees it; position is its place in the study's permutation of its part."""

    row: int
    part: Part
    position: int
    prompt: str
    reference: Any
    columns: Mapping[str, Any]
    occurrence: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the holdout: the winner is stored before the first row is decoded, the verdict after the last.

    Attributes:
        look: 1 for the first look.
        winner: Trial number of the winner.
        trials: How many trials the study had when the winner was chosen.
        selection: What the choice rested on (scores of the finalists).
        verdict: The outcome, None while the look is under way.
        stages: How a reserve is decoded; None where all held-out rows are decoded at once.
        halves: Where two halves of the rows judge each other: what the choice of each half's winner rested on. Then
            `winner` is the one that may be recommended, and before the verdict the first half's. None for a holdout.
    """

    look: int
    winner: int
    trials: int
    selection: dict[str, Any]
    verdict: dict[str, Any] | None = None
    stages: dict[str, Any] | None = None
    halves: tuple[dict[str, Any], ...] | None = None

    @property
    def winners(self) -> tuple[int, ...]:
        """Trial numbers of all that are judged: one, or one of each half."""
        return (self.winner,) if self.halves is None else tuple(int(half["winner"]) for half in self.halves)


class Fence(Protocol):
    """Guards a transaction: raises when the work has gone to another worker."""

    def check(self, connection: sa.Connection) -> None:
        """Raise unless the work is still ours; keeps it ours until the transaction ends."""
        ...


ITEMS_AT_ONCE = 1000
"""Rows of the task in one statement, so that not all stand in the memory once more while they are stored."""


class StudyRecords:
    """The study's rows.

    Args:
        engine: SQLAlchemy engine of the study's database.
        study_key: The study's random key (see `schema`).
    """

    def __init__(self, engine: sa.Engine, study_key: str) -> None:
        self._engine = engine
        self._key = study_key

    # Items

    def write_items(self, items: Iterable[Item]) -> None:
        """Store the task's rows; rows that are there already stay as they are."""
        values = (
            {
                "study": self._key,
                "row": item.row,
                "part": item.part,
                "position": item.position,
                "prompt": storable(item.prompt),
                "reference": _to_json(item.reference),
                "columns": _to_json(dict(item.columns)),
                "occurrence": item.occurrence,
            }
            for item in items
        )
        with self._engine.begin() as connection:
            while group := list(itertools.islice(values, ITEMS_AT_ONCE)):
                schema.upsert(connection, schema.items, group, replace=False)

    def count_items(self) -> int:
        """How many rows of the task are stored."""
        query = sa.select(sa.func.count()).where(schema.items.c.study == self._key)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def items(self, part: Part | None = None) -> list[Item]:
        """The task's rows in the study's permutation, search rows first."""
        t = schema.items
        query = sa.select(t).where(t.c.study == self._key).order_by(t.c.part.desc(), t.c.position)
        if part is not None:
            query = query.where(t.c.part == part)
        with self._engine.connect() as connection:
            return [
                Item(r.row, r.part, r.position, r.prompt, json.loads(r.reference), json.loads(r.columns), r.occurrence)
                for r in connection.execute(query)
            ]

    def write_prompts(self, variant: int, prompts: Mapping[int, str]) -> None:
        """Store the prompts of rows under another way to ask; those that are there already stay as they are.

        Args:
            variant: Its place among the combinations of what is chosen. Of the first one, 0, those are here that are in
                no item: prompts of rows that are neither searched nor held out.
            prompts: Row number -> prompt.
        """
        values = (
            {"study": self._key, "variant": variant, "row": row, "prompt": storable(prompt)}
            for row, prompt in prompts.items()
        )
        with self._engine.begin() as connection:
            while group := list(itertools.islice(values, ITEMS_AT_ONCE)):
                schema.upsert(connection, schema.prompts, group, replace=False)

    def count_prompts(self, variant: int) -> int:
        """How many prompts are stored under another way to ask; see `write_prompts`."""
        t = schema.prompts
        query = sa.select(sa.func.count()).where(t.c.study == self._key, t.c.variant == variant)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def prompts(self, variant: int) -> dict[int, str]:
        """Row number -> prompt under another way to ask; see `write_prompts`."""
        t = schema.prompts
        query = sa.select(t.c.row, t.c.prompt).where(t.c.study == self._key, t.c.variant == variant)
        with self._engine.connect() as connection:
            return {found.row: found.prompt for found in connection.execute(query)}

    # Rows

    def record(self, phase: Phase, number: int, records: Sequence[RowRecord], *, fence: Fence | None = None) -> None:
        """Store single samples that have been decoded, in one transaction; what is there already stays as it is."""
        values = [self._columns(phase, number, r) for r in records]
        with self._engine.begin() as connection:
            if fence is not None:
                fence.check(connection)
            schema.upsert(connection, schema.rows, values, replace=False)

    def set_scores(
        self, phase: Phase, number: int, records: Sequence[RowRecord], *, fence: Fence | None = None
    ) -> None:
        """Store the scores of records that have one, in one transaction."""
        t = schema.rows
        statement = (
            sa.update(t)
            .where(
                t.c.study == self._key,
                t.c.phase == phase,
                t.c.number == number,
                t.c.row == sa.bindparam("of_row"),
                t.c.replicate == sa.bindparam("of_replicate"),
            )
            .values(score=sa.bindparam("new_score"), checksum=sa.bindparam("new_checksum"))
        )
        values = [
            {
                "of_row": r.row,
                "of_replicate": r.draw,
                "new_score": r.score,
                "new_checksum": self._columns(phase, number, r)["checksum"],
            }
            for r in records
            if r.score is not None
        ]
        if not values:
            return
        with self._engine.begin() as connection:
            if fence is not None:
                fence.check(connection)
            connection.execute(statement, values)

    def _columns(self, phase: Phase, number: int, record: RowRecord) -> dict[str, Any]:
        values = {
            "study": self._key,
            "phase": phase,
            "number": number,
            "row": int(record.row),
            "replicate": int(record.draw),
            "text": record.text,
            "token_ids": np.asarray(record.token_ids, dtype="<u4").tobytes(),
            "finish_reason": record.finish_reason,
            "prompt_tokens": int(record.prompt_tokens),
            "score": None if record.score is None else float(record.score),
            "error": record.error,
            "reasoning": record.reasoning,
            "reasoning_tokens": None if record.reasoning is None else int(record.reasoning_tokens),
            "logprob": None if record.logprob is None else float(record.logprob),
        }
        return values | {"checksum": schema.row_checksum(values)}

    def rows(self, phase: Phase, number: int) -> list[RowRecord]:
        """All records of one trial in one phase, by row and replicate; while it runs some may lack samples."""
        return gathered(self.draws(phase, number))

    def draws(self, phase: Phase, number: int) -> list[RowRecord]:
        """All single samples of one trial in one phase, by row, sample and replicate."""
        return self._select_rows(phase, number).get(number, [])

    def all_rows(self, phase: Phase) -> dict[int, list[RowRecord]]:
        """Trial number -> all its records in this phase."""
        return {number: gathered(draws) for number, draws in self._select_rows(phase, None).items()}

    @cached_property
    def _row_columns(self) -> list[Any]:
        """What is read of rows; a column that an older database lacks, and that is only read, is null everywhere."""
        there = {column["name"] for column in sa.inspect(self._engine).get_columns(schema.rows.name)}
        wanted = [column for column in schema.rows.columns if column is not schema.rows.c.checksum]
        return [column if column.name in there else sa.null().label(column.name) for column in wanted]

    def _select_rows(self, phase: Phase, number: int | None) -> dict[int, list[RowRecord]]:
        t = schema.rows
        query = sa.select(*self._row_columns).where(t.c.study == self._key, t.c.phase == phase)
        if number is not None:
            query = query.where(t.c.number == number)
        found: dict[int, list[RowRecord]] = defaultdict(list)
        with self._engine.connect() as connection:
            for r in connection.execute(query.order_by(t.c.number, t.c.row, t.c.replicate)):
                ids = tuple(np.frombuffer(r.token_ids or b"", dtype="<u4").tolist())
                replicate, sample = replicate_and_sample(r.replicate)
                found[r.number].append(
                    RowRecord(
                        r.row,
                        replicate,
                        r.text,
                        ids,
                        r.finish_reason,
                        r.prompt_tokens or 0,
                        r.score,
                        r.error,
                        r.reasoning,
                        r.reasoning_tokens or 0,
                        r.logprob,
                        sample=sample,
                    )
                )
        return dict(found)

    def row_counts(self, phase: Phase) -> dict[int, int]:
        """Trial number -> how many rows it has in this phase, every replicate counted, but not its samples."""
        t = schema.rows
        query = sa.select(t.c.number, sa.func.count().label("rows")).where(
            t.c.study == self._key, t.c.phase == phase, t.c.replicate < MOST_REPLICATES
        )
        with self._engine.connect() as connection:
            return {row.number: row.rows for row in connection.execute(query.group_by(t.c.number))}

    # Looks at the holdout

    def looks(self) -> list[Look]:
        """All looks at the holdout, the first one first."""
        t = schema.looks
        query = sa.select(t).where(t.c.study == self._key).order_by(t.c.look)
        with self._engine.connect() as connection:
            return [_look(r) for r in connection.execute(query)]

    def write_look(self, look: Look, *, fence: Fence | None = None) -> None:
        """Store a look, with or without its verdict."""
        value = {
            "study": self._key,
            "look": look.look,
            "winner": look.winner,
            "trials": look.trials,
            # These stand beside the finalists: columns of their own would part this from earlier databases.
            "selection": _to_json(look.selection | _beside(look)),
            "verdict": None if look.verdict is None else _to_json(look.verdict),
        }
        with self._engine.begin() as connection:
            if fence is not None:
                fence.check(connection)
            schema.upsert(connection, schema.looks, [value])

    # Settings that reports need, and what the engine has learned

    def settings(self) -> dict[str, Any]:
        """What the study was started with, for people: see `search`."""
        with self._engine.connect() as connection:
            text = connection.execute(
                sa.select(schema.meta.c.settings).where(schema.meta.c.study == self._key)
            ).scalar_one()
        found: dict[str, Any] = json.loads(text)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the study's results depend on; see `search`."""
        query = sa.select(schema.meta.c.fingerprint).where(schema.meta.c.study == self._key)
        with self._engine.connect() as connection:
            found: dict[str, Any] = json.loads(connection.execute(query).scalar_one())
        return found

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace what the study was started with."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(schema.meta).where(schema.meta.c.study == self._key).values(settings=_to_json(dict(settings)))
            )

    def batch_sizes(self, device: str, model: str) -> dict[tuple[int, int], int]:
        """(length bucket, beams) -> the batch size that fitted on this device the last time."""
        t = schema.batch_sizes
        query = sa.select(t).where(t.c.device == device, t.c.model == model)
        with self._engine.connect() as connection:
            return {(r.length_bucket, r.beams): r.size for r in connection.execute(query)}

    def remember_batch_sizes(self, device: str, model: str, sizes: Mapping[tuple[int, int], int]) -> None:
        """Store the batch sizes that fitted."""
        values = [
            {"device": device, "model": model, "length_bucket": bucket, "beams": beams, "size": size}
            for (bucket, beams), size in sizes.items()
        ]
        with self._engine.begin() as connection:
            schema.upsert(connection, schema.batch_sizes, values)


def _look(r: Any) -> Look:
    selection = json.loads(r.selection)
    stages, halves = selection.pop("stages", None), selection.pop("halves", None)
    verdict = None if r.verdict is None else json.loads(r.verdict)
    return Look(r.look, r.winner, r.trials, selection, verdict, stages, None if halves is None else tuple(halves))


def _beside(look: Look) -> dict[str, Any]:
    found = {"stages": look.stages, "halves": look.halves}
    return {name: value for name, value in found.items() if value is not None}


def as_stored(value: Any) -> str:
    """Return a text that is the same for what is in memory and for what was read back of it."""
    return json_text(json.loads(_to_json(value)), sort_keys=True, default=_plain)


def _to_json(value: Any) -> str:
    return json_text(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
