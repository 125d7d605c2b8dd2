"""What so many rows can show at all, told as soon as the baseline has scores: before a search, and in its beginning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llmsearch_optuna import progress as events
from llmsearch_optuna.ledger import RowRecord
from llmsearch_optuna.metrics import MetricError
from llmsearch_optuna.rows import prompt_table
from llmsearch_optuna.statistics.power import Power, minimum_detectable
from llmsearch_optuna.storage import OpenedStudy
from llmsearch_optuna.study.planning import Plan

logger = logging.getLogger("llmsearch_optuna.study.detecting")


def power_of(plan: Plan, baseline: Sequence[RowRecord], *, replicates: int) -> Power | None:
    """What the verdict will be able to find; None where the baseline's scores do not tell.

    Args:
        plan: Says how rows are scored, and how many are held out.
        baseline: Rows of the baseline, all or a few; without their scores, too.
        replicates: How often a row of the holdout is decoded where something is sampled.
    """
    order = list(dict.fromkeys(record.row for record in baseline))
    try:
        table = prompt_table(plan.rows, plan.rows.score(baseline), order, plan.task.distinct)
    except MetricError as error:
        logger.info("what so many rows can show is not known: %s", error)
        return None
    if len(table) < 2:
        return None
    return minimum_detectable(
        table,
        rows=len(plan.holdout),
        prompts=len({plan.task.distinct[row] for row in plan.holdout}),
        replicates=replicates,
        bounds=plan.rows.metric.bounds,
    )


@dataclass(frozen=True)
class PowerTeller:
    """Passes events on; once the baseline's scores are there, says what so many rows can show at all."""

    observer: events.Observer
    opened: OpenedStudy
    plan: Plan
    replicates: int

    def on(self, event: events.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if isinstance(event, events.TrialEnded) and event.number == 0 and event.state == "complete":
            self._tell()

    def _tell(self) -> None:
        power = power_of(self.plan, self.opened.ledger.rows("search", 0), replicates=self.replicates)
        if power is not None:
            self.opened.study.set_user_attr("power", power.text)
            self.observer.on(events.PowerKnown(text=power.text))
