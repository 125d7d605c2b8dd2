"""What the verdict of a planned study will be able to find, from scores of its baseline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.evaluation import prompt_table
from llmsearch_optuna.optimize.plan import Plan
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL
from llmsearch_optuna.stats.power import Power, minimum_detectable
from llmsearch_optuna.storage.row_record import RowRecord

logger = logging.getLogger("llmsearch_optuna.optimize.planned_power")


def power_of(plan: Plan, baseline: Sequence[RowRecord], *, replicates: int) -> Power | None:
    """What the verdict will be able to find; None where the baseline's scores do not tell.

    Args:
        plan: Says how rows are scored, and how many are held out.
        baseline: Rows of the baseline, all or a few; without their scores, too.
        replicates: How often a row of the holdout is decoded where something is sampled.
    """
    failed = {record.row for record in baseline if record.error is not None}
    baseline = [record for record in baseline if record.row not in failed]
    order = list(dict.fromkeys(record.row for record in baseline))
    try:
        table = prompt_table(plan.rows, plan.rows.score(baseline), order)
    except MetricError as error:
        logger.info("what so many rows can show is not known: %s", error)
        return None
    if len(table) < 2:
        return None
    found = minimum_detectable(
        table,
        rows=len(plan.judged),
        prompts=len({plan.task.distinct[row] for row in plan.judged}),
        replicates=plan.most_replicates(replicates),
        alpha=0.05 if plan.stages is None else plan.stages.planned.alpha,
        unseen_level=None if plan.halves is None else UNSEEN_LEVEL,
        bounds=plan.task.metric.bounds,
        direction=plan.rows.direction,
    )
    return replace(found, held_out=plan.halves is None)
