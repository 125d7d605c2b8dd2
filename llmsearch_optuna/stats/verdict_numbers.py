"""The numbers of a verdict: what was compared on the held-out rows, and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmsearch_optuna.stats.conditions import ConditionOutcome
from llmsearch_optuna.stats.crossed import HalfOutcome
from llmsearch_optuna.stats.holm import BaselineComparison
from llmsearch_optuna.types import Direction

Answer = Literal["better", "worse", "not worse than margin", "no evidence"]
StopReason = Literal["evidence", "futility", "all rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictNumbers:
    """The outcome of one look at the holdout, or why there was none, in numbers.

    All score differences are winner minus baseline in the metric's own unit (negative is good when minimizing).

    Attributes:
        answer: ``"better"``, ``"worse"``, ``"no evidence"``, or, when a margin was given, ``"not worse than margin"``.
        sentence: The answer with its numbers, for people.
        direction: Of the metric.
        baseline_mean: The baseline's score on the holdout; None where nothing was looked at.
        winner_mean: The winner's.
        difference: Their mean paired difference.
        low: Lower end of the interval of the difference; None where the data set no limit.
        high: Upper end.
        confidence: Of the interval.
        p_value: Two-sided, of "no difference"; this decides.
        margin_p_value: One-sided, of "worse by the margin or more"; None without a margin.
        detectable: The true difference that a look like this one finds in 80 of 100 cases, by the test that was used;
            None where there are too few rows to find even a large one so often.
        wins: Rows (means over replicates) on which the winner scores better; None for corpus metrics.
        ties: Rows on which both score alike.
        losses: The rest.
        rows: Held-out rows that were compared.
        prompts: Distinct prompts among them, the independent units.
        replicates: How often each row was decoded, by the side that was decoded more often.
        baseline_replicates: How often by the baseline; None where an earlier version did not store it.
        winner_replicates: How often by the winner.
        margin: The loss that was declared acceptable, or None.
        look: 1 for the first look at this holdout. Later ones are not corrected for the earlier: read them with care.
        optimism: How much larger the winner's lead over the baseline was on the search rows than on the holdout;
            positive is flattering.
        optimism_low: Lower end of its interval; what an earlier version stored as optimism has none and is dropped.
        optimism_high: Upper end.
        unscored: Held-out rows that could not be scored, for the baseline or the winner, and do not count.
        method: How p-value and interval were made.
        differences: Winner minus baseline, one value a row; empty for corpus metrics.
        conditions: How the conditions of the study stand on the held-out rows.
        baselines: The winner against all baselines that have a name, where that was asked for.
        stage: After which stage the look ended; None where all rows were looked at once. With several stages the
            p-values and the interval are those that hold at all of them together (see `group_sequential`).
        stages: How many were planned.
        planned_prompts: Distinct prompts of all stages.
        stopped: Why it ended there; None while it goes on.
        halves: Where two halves of the rows judged each other: what each half's winner did. The numbers above are
            those of all rows then, each with the winner that had not seen it. Empty for a holdout.
    """

    answer: Answer
    sentence: str
    direction: Direction
    baseline_mean: float | None = None
    winner_mean: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    p_value: float | None = None
    margin_p_value: float | None = None
    detectable: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    rows: int = 0
    prompts: int = 0
    replicates: int = 1
    baseline_replicates: int | None = None
    winner_replicates: int | None = None
    margin: float | None = None
    look: int = 1
    optimism: float | None = None
    optimism_low: float | None = None
    optimism_high: float | None = None
    unscored: int = 0
    method: str = ""
    differences: tuple[float, ...] = ()
    conditions: tuple[ConditionOutcome, ...] = ()
    baselines: tuple[BaselineComparison, ...] = ()
    stage: int | None = None
    stages: int | None = None
    planned_prompts: int | None = None
    stopped: StopReason | None = None
    halves: tuple[HalfOutcome, ...] = ()

    @property
    def recommends_winner(self) -> bool:
        """Whether there is reason to use the winner's parameters instead of the baseline's.

        Where there are conditions, only what is shown to keep all of them is recommended; the winner also where the
        score gives no reason, if the baseline is not shown to keep them.
        """
        if any(condition.winner != "holds" for condition in self.conditions):
            return False
        is_needed = any(condition.baseline != "holds" for condition in self.conditions)
        return is_needed or self.answer in ("better", "not worse than margin")

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), infinite where the data set no limit; None where nothing was looked at."""
        if self.difference is None:
            return None
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)
