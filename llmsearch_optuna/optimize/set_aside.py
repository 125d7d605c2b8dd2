"""Rows that the baseline cannot decode: no trial is scored on them.

Whether a row counts follows from trial 0 alone, so every trial waits for it before it takes a pruning step. Rows on
which another trial fails are that trial's own failure.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer
from llmsearch_optuna.storage.study import OpenedStudy

logger = logging.getLogger("llmsearch_optuna.optimize.set_aside")

ATTRIBUTE = "set_aside"
"""Of the study: row number, as a text -> why the baseline could not decode it."""

LOOK_SECONDS = 0.1
"""Between two looks at what another worker has decoded."""

MOST_SET_ASIDE = 0.05
"""Share of the search rows."""


@dataclass
class BaselineRows:
    """What is known of the baseline's rows.

    Attributes:
        opened: The study.
        rows: The search rows.
        replicates: How often the baseline decodes each of them.
        samples: How many samples each of these has.
    """

    opened: OpenedStudy
    rows: SearchRows
    replicates: int
    samples: int = 1
    _is_here: bool = False
    _looked_at: float = -math.inf
    _final: Mapping[int, str] | None = None
    _errors: dict[tuple[int, int], str | None] = field(default_factory=dict)

    def take(self, records: Iterable[RowRecord]) -> None:
        """Take rows of trial 0, which is worked on in this process."""
        self._is_here = True
        self._errors |= {(r.row, r.replicate): r.error for r in records}

    def lose(self) -> None:
        """Trial 0 has gone to another worker."""
        self._is_here = False

    def set_aside(self, rows: Sequence[int]) -> frozenset[int] | None:
        """Return which rows do not count; None where that is not known yet of each of these.

        Args:
            rows: Row numbers.
        """
        if not self._is_here and self._final is None and time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._look_at_the_other_worker()
            self._looked_at = time.monotonic()
        if self._final is not None:
            return frozenset(self._final)
        asked = [(row, replicate) for row in rows for replicate in range(self.replicates)]
        if any(key not in self._errors for key in asked):
            return None
        return frozenset(row for row, replicate in asked if self._errors[row, replicate] is not None)

    def store(self, seen: int) -> None:
        """Store which of the first rows trial 0 could not decode, and say it where there are new ones."""
        before = stored_set_aside(self.opened)
        found = dict(before)
        for row in self.rows.order[:seen]:
            reasons = (self._errors.get((row, replicate)) for replicate in range(self.replicates))
            reason = next((reason for reason in reasons if reason is not None), None)
            if reason is not None:
                found.setdefault(row, reason)
        if found == before:
            return
        self.opened.study.set_user_attr(ATTRIBUTE, {str(row): reason[:500] for row, reason in found.items()})
        for row in sorted(set(found) - set(before)):
            logger.warning(
                "row %d is set aside for the whole study, since the baseline cannot decode it: %s", row, found[row]
            )

    def end(self) -> None:
        """Trial 0 has ended: what is stored holds."""
        self._final = stored_set_aside(self.opened)

    def check_share(self, records: Iterable[RowRecord]) -> None:
        """Make sure that no more rows than a few have to be set aside.

        Args:
            records: Rows of trial 0 that have just been decoded.

        Raises:
            StudyError: Too many cannot be decoded; says which and why.
        """
        reasons = {row: error for (row, _), error in self._errors.items() if error is not None}
        reasons |= {r.row: r.error for r in records if r.error is not None}
        if len(reasons) <= MOST_SET_ASIDE * len(self.rows.order):
            return
        shown = "; ".join(f"row {row}: {reason}" for row, reason in sorted(reasons.items())[:3])
        raise StudyError(
            f"the baseline cannot decode {len(reasons)} of {len(self.rows.order)} search rows, and at most "
            f"{MOST_SET_ASIDE:.0%} can be set aside: {shown}\nMend these rows, the baseline, or what decodes, and give "
            "the same command again."
        )

    def _look_at_the_other_worker(self) -> None:
        trials = self.opened.study.get_trials(deepcopy=False)
        if trials and trials[0].state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            self.end()
        else:
            known = SampleGatherer(self.samples).add(self.opened.records.draws("search", 0))
            self._errors = {(r.row, r.replicate): r.error for r in known}


def stored_set_aside(opened: OpenedStudy) -> dict[int, str]:
    """Row number -> why the baseline could not decode it, as the study has it."""
    found = opened.study.user_attrs.get(ATTRIBUTE, {})
    return {int(row): str(reason) for row, reason in found.items()}


def set_aside_sentence(rows: Mapping[int, str], total: int) -> str:
    """Return how many search rows do not count, which, and why; empty where all do.

    >>> set_aside_sentence({3: "400: too long"}, 40)
    '1 of 40 search rows is set aside, since the baseline cannot decode it: row 3 (400: too long).'
    """
    if not rows:
        return ""
    verb, them = ("is", "it") if len(rows) == 1 else ("are", "them")
    named = ", ".join(f"row {row} ({reason[:100]})" for row, reason in sorted(rows.items())[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return (
        f"{len(rows)} of {total} search rows {verb} set aside, since the baseline cannot decode {them}: {named}{more}."
    )
