"""One look at the held-out rows: the winner and the baseline are decoded on them, and compared.

Of a reserve the look has stages; otherwise all rows are taken at once. How scores are compared stands in `stats`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.condition_outcomes import Decoded, condition_outcomes
from llmsearch_optuna.optimize.evaluation import SearchRows, prompt_table
from llmsearch_optuna.optimize.holdout import StagePlan
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.row_comparison import (
    check_corpus_score,
    compare_rows,
    compare_with_baselines,
    failing_rows,
    looks_taken,
)
from llmsearch_optuna.optimize.scored_rows import (
    rows_with_score,
)
from llmsearch_optuna.stats.conditions import ConditionOutcome
from llmsearch_optuna.stats.group_sequential import StageDesign, judge_stage
from llmsearch_optuna.stats.holm import BaselineComparison
from llmsearch_optuna.stats.optimism import Optimism, optimism
from llmsearch_optuna.stats.verdict import (
    Verdict,
    baseline_won,
    infeasible_verdict,
    no_holdout_verdict,
    unscored_verdict,
)
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import Look, Phase
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import is_feasible, params_of

logger = logging.getLogger("llmsearch_optuna.optimize.holdout_look")


@dataclass(frozen=True)
class Held:
    """Held-out rows that are compared together.

    Attributes:
        rows: Their numbers.
        replicates: How often each is decoded where something is sampled.
        design: The stages that these rows are the first of; None where they are all.
        stage: Which one ends with them, from 0.
    """

    rows: tuple[int, ...]
    replicates: int
    design: StageDesign | None = None
    stage: int = 0


@dataclass(frozen=True, kw_only=True)
class HoldoutLook:
    """A look that has begun: its winner is stored.

    Attributes:
        opened: The study.
        server: The backend that decodes.
        rows: The search rows.
        holdout: Row numbers that no trial has seen.
        replicates: How often a row is decoded where something is sampled.
        varies: Whether decoding again under these parameters can give another text.
        margin: See `search`.
        seed: Of the sampled permutations.
        callback: Gets an event when the holdout is decoded.
        baselines: Named ones that the winner is compared with besides; empty where only the one in use counts.
        look: Its winner, and its stages.
        trials: Those of the study.
        claim: Says that the work is ours.
    """

    opened: OpenedStudy
    server: RequestHandler
    rows: SearchRows
    holdout: Sequence[int]
    replicates: int
    varies: Callable[[Mapping[str, Any]], bool]
    margin: float | None
    seed: int
    callback: progress.Callback
    baselines: Mapping[str, GenerationParams]
    look: Look
    trials: Sequence[FrozenTrial]
    claim: Claim

    def verdict(self) -> Verdict:
        """Decode what is not decoded yet of the held-out rows, and compare; or say why nothing is compared."""
        look, trials = self.look, self.trials
        direction = self.rows.direction
        if not is_feasible(trials[look.winner]):
            return infeasible_verdict(self._broken(trials[look.winner]), trial=look.winner, direction=direction)
        if not self.holdout:
            return no_holdout_verdict(rows=len(self.rows.task), direction=direction)
        if look.winner == 0:
            return baseline_won(direction=direction)
        if look.stages is not None:
            return self._staged_verdict(StagePlan.from_json(look.stages))
        held = Held(tuple(self.holdout), self.replicates)
        verdict = self._look_at(held)
        return verdict.with_baselines(self._against_all(verdict, held))

    def _staged_verdict(self, plan: StagePlan) -> Verdict:
        """Decode stage after stage until one ends the comparison; those that were decoded before cost nothing."""
        found: Verdict | None = None
        for stage, rows in enumerate(plan.rows):
            held = Held(tuple(self.holdout[:rows]), plan.replicates, plan.design, stage)
            found = judge_stage(partial(self._look_at, held), plan.design, stage)
            if found.stopped is not None or found.difference is None:
                break
        assert found is not None
        return found.with_baselines(self._against_all(found, held))

    def _against_all(self, verdict: Verdict, held: Held) -> tuple[BaselineComparison, ...]:
        return compare_with_baselines(
            verdict,
            self.baselines,
            self.trials,
            [self.look.winner],
            lambda number: self._look_at(held, against=number),
        )

    def _look_at(self, held: Held, alpha: float = 0.05, against: int = 0) -> Verdict:
        """Decode what is not decoded yet of these held-out rows, and compare the winner with a baseline."""
        replicates = held.replicates if any(self.varies(self._params(n)) for n in (against, self.look.winner)) else 1
        stages = 1 if held.design is None else len(held.design)
        self.callback.on(
            progress.VerdictStarted(rows=len(held.rows), replicates=replicates, stage=held.stage + 1, stages=stages)
        )
        wanted = {}
        for number in (against, self.look.winner):
            params = self._params(number)
            repeats = range(held.replicates if self.varies(params) else 1)
            tag: tuple[Phase, int] = ("holdout", number)
            wanted[number] = self.rows.requests(params, tag, order=held.rows, replicates=repeats)
        found = gather(self.server, self.opened.records, "holdout", wanted, self.claim)
        return self._compare(found, held, alpha, against)

    def _conditions(
        self, kept: Mapping[int, Sequence[RowRecord]], order: Sequence[int]
    ) -> tuple[ConditionOutcome, ...]:
        """How the conditions stand on the held-out rows, for the winner and for the baseline."""
        winner, baseline = (Decoded(self._params(n), kept[n]) for n in (self.look.winner, 0))
        return condition_outcomes(self.rows, winner, baseline, order)

    def _compare(self, found: dict[int, list[RowRecord]], held: Held, alpha: float, against: int) -> Verdict:
        failed = failing_rows(self.opened, self.rows, found, self.claim)
        order = [row for row in held.rows if row not in failed]
        if failed:
            logger.warning("holdout rows %s could not be scored and do not count", sorted(failed))
        if not order:
            return unscored_verdict(rows=len(held.rows), direction=self.rows.direction)
        kept = {n: self._kept(n, records, failed) for n, records in found.items()}
        try:
            verdict = self._compared(kept, order, held, alpha, against)
        except MetricError as error:  # of all rows at once; what fails by row is left out above
            logger.warning("the holdout could not be scored: %s", error)
            return unscored_verdict(rows=len(held.rows), direction=self.rows.direction)
        if against != 0:
            return verdict
        return verdict.with_conditions(self._conditions(kept, order))

    def _kept(self, number: int, decoded: Sequence[RowRecord], failed: set[int]) -> list[RowRecord]:
        """What is stored of these records, with scores, without rows that failed."""
        keys = {(r.row, r.replicate) for r in decoded if r.row not in failed}
        return [r for r in self.opened.records.rows("holdout", number) if (r.row, r.replicate) in keys]

    def _compared(
        self,
        kept: Mapping[int, Sequence[RowRecord]],
        order: Sequence[int],
        held: Held,
        alpha: float,
        against: int,
    ) -> Verdict:
        check_corpus_score(self.rows, *kept.values())
        return compare_rows(
            self.rows,
            kept[against],
            kept[self.look.winner],
            order,
            seed=self.seed,
            margin=self.margin,
            look=looks_taken(self.opened.records) + 1,
            unscored=len(held.rows) - len(order),
            alpha=alpha,
            planned=held.design and held.design.planned,
            optimism=self._optimism(kept, order) if against == 0 else None,
        )

    def _optimism(self, kept: Mapping[int, Sequence[RowRecord]], order: Sequence[int]) -> Optimism | None:
        """How much larger the winner's lead was on the search rows; None where a corpus metric cannot tell."""
        searched = {number: self.opened.records.rows("search", number) for number in (0, self.look.winner)}
        # A baseline that failed on its way has no scores from there on.
        shared = set.intersection(*(rows_with_score(self.rows, records) for records in searched.values()))
        searched_order = [row for row in self.rows.order if row in shared]
        if not searched_order:
            return None
        try:
            return optimism(
                self._gains(searched, searched_order),
                self._gains(kept, order),
            )
        except MetricError as error:
            logger.info("the optimism of the search is not known: %s", error)
            return None

    def _gains(self, records: Mapping[int, Sequence[RowRecord]], order: Sequence[int]) -> NDArray[np.float64]:
        """The winner's gain over the baseline on each prompt of these rows, [prompts]."""
        sides = (prompt_table(self.rows, records[number], order) for number in (0, self.look.winner))
        first, second = (np.mean(side, axis=1) for side in sides)
        gains: NDArray[np.float64] = (second - first) * (-1.0 if self.rows.direction == "minimize" else 1.0)
        return gains

    def _params(self, number: int) -> GenerationParams:
        return params_of(self.trials[number])

    def _broken(self, trial: FrozenTrial) -> list[str]:
        """What a trial breaks, in words."""
        told = []
        for condition in self.rows.constraints.conditions:
            violation, limit = trial.constraints.get(condition.name, 0.0), condition.limit
            if violation > 0:
                bound = limit.value - violation if limit.sense == ">=" else limit.value + violation
                side = "at least" if limit.sense == ">=" else "at most"
                told.append(f"{condition.name} is shown to be {side} {bound:.4g} and has to be {limit}")
        return told
