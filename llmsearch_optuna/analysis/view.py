"""Small readings of a study that its result is made of.

Reads the study and its records, never decodes, and needs neither the model nor the process that searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from llmsearch_optuna.stats.finalists import Selection
from llmsearch_optuna.storage.records import RowRecord
from llmsearch_optuna.storage.trials import rows_counted

if TYPE_CHECKING:
    pass


def _has_no_errors(selection: Selection) -> bool:
    return all(finalist.error == finalist.standard_error == 0.0 for finalist in selection.finalists)


def _rows_counted(trial: FrozenTrial) -> int | None:
    """How many rows of the permutation count: those of the last pruning step; all that are there while it runs."""
    return rows_counted(trial) if trial.state.is_finished() else None


def _scored(records: Sequence[RowRecord]) -> bool:
    return bool(records) and all(r.score is not None for r in records)


def _first_failure(trials: Sequence[FrozenTrial]) -> str | None:
    reasons = (t.user_attrs.get("fail_reason") for t in trials)
    first = next((str(reason) for reason in reasons if reason), None)
    return None if first is None else f"the first failure: {first}"
