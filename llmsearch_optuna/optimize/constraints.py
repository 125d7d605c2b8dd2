"""The conditions that a winner has to keep: shares of rows, means of any metric, or generated tokens a row.

A trial is feasible where the bound of its rows keeps every limit, not where their plain mean does. What a condition
needs of a row follows from its completion, so that nothing of it is stored by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.optimize.measures import Measure
from llmsearch_optuna.stats.conditions import SEARCH_LEVEL, Limit, Standing, fewest_values, standing
from llmsearch_optuna.stats.paired_tests import cluster_numbers
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.types import Bounds


@dataclass(frozen=True)
class Condition:
    """A limit for the mean of one metric, or of the generated tokens."""

    measure: Measure
    limit: Limit

    @property
    def name(self) -> str:
        """The metric's, or ``"tokens"``."""
        return self.measure.name

    def ends(self, most_tokens: int) -> Bounds:
        """The least and the highest value of a row."""
        if self.measure.metric is None:
            return (0.0, float(most_tokens))
        assert self.measure.metric.bounds is not None
        return self.measure.metric.bounds


RowKey = tuple[int, int]
"""Row and replicate."""


@dataclass(frozen=True)
class Constraints:
    """All conditions of a study; there may be none."""

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def of(cls, given: Any, *, postprocess: Callable[[str], str] | None = None) -> Constraints:
        """Check what a user gave.

        Args:
            given: Metric (anything that `Metric.of` takes) or ``"tokens"`` -> limit, such as ``">= 0.95"``.
            postprocess: Applied to every text before a metric sees it.

        Raises:
            InputError: A name, a limit or a metric cannot be used.
        """
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise InputError(f"constraints={short(given)} must be a dict, such as {{'terminates': '>= 0.95'}}")
        found = tuple(_condition(what, written, postprocess) for what, written in given.items())
        names = [condition.name for condition in found]
        if len(set(names)) < len(names):
            raise InputError(f"constraints name {', '.join(names)}; every condition needs a name of its own")
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def checked(self, task: PreparedTask) -> Constraints:
        """Return them with their metrics tried on the first rows.

        Raises:
            InputError: A metric cannot be used on these rows, scores all of them at once, or has no bounds.
        """
        return Constraints(tuple(_checked(condition, task) for condition in self.conditions))

    @property
    def limits(self) -> dict[str, str]:
        """Name -> limit, as it is written."""
        return {condition.name: str(condition.limit) for condition in self.conditions}

    @property
    def description(self) -> list[dict[str, Any]]:
        """How they count in a study's fingerprint."""
        return [{**c.measure.description, "name": c.name, "limit": str(c.limit)} for c in self.conditions]

    def refuse_what_cannot_be_shown(self, prompts: int) -> None:
        """Raise InputError where not even the best answers on so many search prompts would make a trial feasible."""
        for condition in self.conditions:
            needed = _fewest(condition, SEARCH_LEVEL)
            if needed is None:
                raise InputError(
                    f"constraints: no number of rows shows that {condition.name} {condition.limit} holds, since it "
                    "leaves no room for a row that was not seen; give a limit that does, such as 0.95 for a rate"
                )
            if needed > prompts:
                raise InputError(
                    f"constraints: {prompts} distinct search prompts cannot show that {condition.name} "
                    f"{condition.limit} holds, even where every answer is right; it takes {needed}. Give more rows "
                    "(and a larger search_rows=), a smaller holdout, or a limit that leaves more room"
                )

    def rows_to_hold_out(self, level: float) -> dict[str, int]:
        """Name -> how many distinct prompts it takes to show it where every answer is right."""
        found = {condition.name: _fewest(condition, level) for condition in self.conditions}
        return {name: needed for name, needed in found.items() if needed is not None}

    def values(self, records: Sequence[RowRecord], answers: Answers) -> dict[RowKey, dict[str, float]]:
        """What each record contributes, by row and replicate, and by condition.

        Args:
            records: Decoded rows.
            answers: The same as metrics take them.

        Raises:
            MetricError: A metric failed; names the row.
        """
        columns = {condition.name: condition.measure.values(records, answers) for condition in self.conditions}
        return {
            (record.row, record.replicate): {name: column[place] for name, column in columns.items()}
            for place, record in enumerate(records)
        }

    def standings(
        self,
        values: Mapping[RowKey, Mapping[str, float]],
        order: Sequence[int],
        task: PreparedTask,
        *,
        most_tokens: int,
        level: float = SEARCH_LEVEL,
    ) -> dict[str, Standing]:
        """How every condition stands, rows that have no value yet taken to be the best there are.

        So what is broken here cannot be mended by the rows that are left. The mean over replicates counts as the value
        of a row, and that over rows with the same prompt as one value.

        Args:
            values: See `values`.
            order: The row numbers that count.
            task: Says which rows have the same prompt.
            most_tokens: Of a row.
            level: See `stats.conditions`.
        """
        labels = cluster_numbers([task.distinct[row] for row in order])
        sizes = np.bincount(labels)
        by_row: dict[int, list[Mapping[str, float]]] = {}
        for (row, _), found in values.items():
            by_row.setdefault(row, []).append(found)
        result = {}
        for condition in self.conditions:
            ends = condition.ends(most_tokens)
            best = condition.limit.best(ends)
            of_rows = [
                float(np.mean([found[condition.name] for found in by_row[row]])) if row in by_row else best
                for row in order
            ]
            units = np.bincount(labels, of_rows) / sizes
            result[condition.name] = standing(units, condition.limit, ends, level=level)
        return result


NO_CONSTRAINTS = Constraints()


def means(values: Mapping[RowKey, Mapping[str, float]]) -> dict[str, float]:
    """The plain mean of every condition over the rows that have values."""
    names = list(next(iter(values.values()), {}))
    return {name: float(np.mean([found[name] for found in values.values()])) for name in names}


def reason_to_prune(standings: Mapping[str, Standing], seen: int, total: int) -> str | None:
    """Why a trial cannot become feasible; None where it can."""
    for name, found in standings.items():
        if found.violation > 0:
            side = "at least" if found.limit.sense == ">=" else "at most"
            return (
                f"after {seen} of {total} rows it cannot become feasible: even where all others are the best there "
                f"are, {name} is shown to be {side} {found.bound:.4g}, and has to be {found.limit}"
            )
    return None


def _condition(what: Any, written: Any, postprocess: Callable[[str], str] | None) -> Condition:
    try:
        limit = Limit.of(written)
    except InputError as problem:
        raise InputError(f"constraints[{short(what)}]: {problem}") from None
    return Condition(Measure.of(what, postprocess), limit)


def _checked(condition: Condition, task: PreparedTask) -> Condition:
    try:
        measure = condition.measure.checked(task)
    except InputError as problem:
        raise InputError(f"constraints: {problem}") from None
    metric = measure.metric
    if metric is None:
        return condition
    if metric.bounds is None:
        raise InputError(
            f"constraints: nothing says how low or high {condition.name} can be, so no number of rows bounds its mean; "
            "give it bounds: Metric.of(function, bounds=(0, 1))"
        )
    low, high = metric.bounds
    if not low <= condition.limit.value <= high:
        raise InputError(
            f"constraints: {condition.name} {condition.limit} can be compared with scores from {low:g} to {high:g} only"
        )
    return replace(condition, measure=measure)


def _fewest(condition: Condition, level: float) -> int | None:
    """Of tokens nothing is known beforehand: a trial may write less than its limit on every row."""
    if condition.measure.metric is None:
        return 1
    return fewest_values(condition.limit, condition.ends(1), level=level)
