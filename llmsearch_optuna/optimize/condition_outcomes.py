"""How the conditions of a study stand on held-out rows, for the winner and for the baseline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.stats.conditions import HOLDOUT_LEVEL, ConditionOutcome, Standing
from llmsearch_optuna.storage.row_record import RowRecord

logger = logging.getLogger("llmsearch_optuna.optimize.condition_outcomes")


@dataclass(frozen=True)
class Decoded:
    """What one configuration has written.

    Attributes:
        params: The configuration.
        records: Its rows, in every replicate.
    """

    params: GenerationParams
    records: Sequence[RowRecord]


def condition_outcomes(
    rows: SearchRows, winner: Decoded, baseline: Decoded, order: Sequence[int]
) -> tuple[ConditionOutcome, ...]:
    """Return how each condition stands; empty where the study has none.

    A side on which a condition's metric fails has no standing, which is said.

    Args:
        rows: Says the conditions, and how metrics see rows.
        winner: Of the study.
        baseline: Of the study.
        order: The numbers of the held-out rows that count.
    """
    if not rows.constraints:
        return ()
    of_winner, of_baseline = (_standings(rows, side, order) for side in (winner, baseline))
    return tuple(
        ConditionOutcome.of(c.name, c.limit, of_winner.get(c.name), of_baseline.get(c.name))
        for c in rows.constraints.conditions
    )


def _standings(rows: SearchRows, side: Decoded, order: Sequence[int]) -> dict[str, Standing]:
    try:
        values = rows.constraints.values(side.records, rows.answers(side.records))
    except MetricError as error:
        logger.warning("a condition could not be checked on the holdout: %s", error)
        return {}
    return rows.constraints.standings(
        values, order, rows.task, most_tokens=side.params.most_tokens, level=HOLDOUT_LEVEL
    )
