"""Does the winner win in the engine that will serve it, too? The study's verdict once more, decoded elsewhere.

Other kernels, a quantised model or another order of the sampling rules can change which parameters are best. Baseline
and winner are decoded on the rows that no trial has seen, and compared as the study compared them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.condition_outcomes import Decoded, condition_outcomes
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.locked_rows import LockedRows, LockedStudy, lock
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.row_comparison import compare_rows
from llmsearch_optuna.optimize.signals import interruptible
from llmsearch_optuna.options import ConfirmOptions
from llmsearch_optuna.stats.verdict import Verdict, unscored_verdict
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.leases import Session
from llmsearch_optuna.storage.records import Phase
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy

logger = logging.getLogger("llmsearch_optuna.optimize.confirm")

CONFIRMATIONS = "confirmations"
"""The study's attribute with what was confirmed, oldest first; while one is under way its verdict is None."""

_CLAIM = -2
"""The claim's number: one process confirms at a time."""


@dataclass(frozen=True)
class Confirmation:
    """The study's verdict, and that of another engine on the same rows.

    Attributes:
        engine: The engine's name.
        study: What the study's own engine says.
        here: What this engine says.
    """

    engine: str
    study: Verdict
    here: Verdict

    @property
    def holds(self) -> bool:
        """Whether the winner is to be recommended here."""
        return self.here.recommends_winner

    @property
    def sentence(self) -> str:
        """Both answers in two sentences."""
        study, here = (_uncapitalized(verdict.headline) for verdict in (self.study, self.here))
        return f"In the study: {study} With {self.engine}: {here}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "engine": self.engine,
            "holds": self.holds,
            "study": self.study.to_json(),
            "here": self.here.to_json(),
            "sentence": self.sentence,
        }


def confirm_study(
    opened: OpenedStudy, model: Any, dataset: Any, tokenizer: Any, options: ConfirmOptions
) -> Confirmation:
    """Decode baseline and winner on the locked rows with another engine, and compare them there.

    What is decoded is stored in the study: one that was interrupted goes on where it stopped, and one that has ended
    begins anew, since what serves may have changed.

    Args:
        opened: A study with a verdict.
        model: Decodes; see `search`.
        dataset: The study's own data.
        tokenizer: See `search`.
        options: Those with defaults, too.

    Raises:
        InputError: An argument cannot be used, or data and metric are not the study's.
        StudyError: The study has no verdict, or somebody else confirms it now.
    """
    locked = lock(opened, model, dataset, tokenizer, options, _conditions(opened, options["constraints"]))
    params = {number: locked.params(number) for number in (0, locked.study.winner)}
    with storage_errors(opened.address), Session(opened.database, opened.key) as session:
        claim = session.claim(_CLAIM)
        if claim is None:
            raise StudyError(f"another process confirms the study {opened.name!r} at the moment; wait until it is done")
        place = _place(locked)
        tags: list[tuple[Phase, int]] = [("confirm", 2 * place + side) for side in range(2)]
        wanted = {tag[1]: locked.requests(number, tag) for number, tag in zip(params, tags, strict=True)}
        with interruptible(lambda: "the same command goes on where it stopped"):
            found = gather(locked.served.backend, opened.records, "confirm", wanted, claim)
        baseline, winner = (Decoded(params[number], found[tag[1]]) for number, tag in zip(params, tags, strict=True))
        here = _verdict(locked, baseline, winner)
        _store(opened, place, verdict=here)
    return Confirmation(locked.served.name, locked.study.verdict, here)


def confirmations(opened: OpenedStudy) -> list[Confirmation]:
    """Return what was confirmed so far of the study's last winner, oldest first."""
    entries = [entry for entry in _entries(opened) if entry["verdict"] is not None]
    if not entries:
        return []
    study = LockedStudy.of(opened)
    return [
        Confirmation(str(entry["engine"]), study.verdict, Verdict.from_json(entry["verdict"]))
        for entry in entries
        if entry["winner"] == study.winner
    ]


def _place(locked: LockedRows) -> int:
    """The number of this confirmation: of the one that was begun with this engine, else a new one."""
    opened = locked.study.opened
    asked = {
        "engine": locked.served.name,
        "model": repr(dict(locked.served.description)),
        "winner": locked.study.winner,
    }
    entries = _entries(opened)
    for place, entry in enumerate(entries):
        if entry["verdict"] is None and {name: entry[name] for name in asked} == asked:
            return place
    opened.study.set_user_attr(CONFIRMATIONS, [*entries, {**asked, "began": time.time(), "verdict": None}])
    return len(entries)


def _entries(opened: OpenedStudy) -> list[dict[str, Any]]:
    return [dict(entry) for entry in opened.study.user_attrs.get(CONFIRMATIONS, ())]


def _store(opened: OpenedStudy, place: int, *, verdict: Verdict) -> None:
    entries = _entries(opened)
    entries[place] = {**entries[place], "verdict": verdict.to_json()}
    opened.study.set_user_attr(CONFIRMATIONS, entries)


def _conditions(opened: OpenedStudy, given: Mapping[Any, str] | None) -> Mapping[Any, str]:
    """The study's conditions: those that are given, else by the names that it remembers.

    Raises:
        InputError: Others were given, or one is no built-in metric and has to be given.
    """
    stored: dict[str, str] = opened.records.settings().get("constraints", {})
    if given is not None:
        if (limits := Constraints.of(given).limits) != stored:
            raise InputError(f"the study {opened.name!r} has constraints {stored}, not {limits}")
        return given
    try:
        Constraints.of(stored)
    except InputError as problem:
        raise InputError(f"give constraints= as they were given to search: {problem}") from None
    return stored


def _verdict(locked: LockedRows, baseline: Decoded, winner: Decoded) -> Verdict:
    sides = [locked.scored(side.records) for side in (baseline, winner)]
    common = set.intersection(*({r.row for r in records} for records in sides))
    order = [row for row in locked.study.rows if row in common]
    direction = locked.rows.direction
    if not order:
        return unscored_verdict(rows=len(locked.study.rows), direction=direction)
    of_baseline, of_winner = kept = [[r for r in records if r.row in common] for records in sides]
    verdict = _compared(locked, kept, order)
    return verdict.with_conditions(
        condition_outcomes(
            locked.rows,
            replace(winner, records=of_winner),
            replace(baseline, records=of_baseline),
            order,
        )
    )


def _compared(locked: LockedRows, kept: Sequence[Sequence[RowRecord]], order: Sequence[int]) -> Verdict:
    """Compare the baseline's records with the winner's on these rows."""
    baseline, winner = kept
    return compare_rows(
        locked.rows,
        baseline,
        winner,
        order,
        margin=locked.study.verdict.margin,
        seed=locked.study.seed,
        unscored=len(locked.study.rows) - len(order),
    )


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]
