"""Selects the winner: finalists are scored again, the winner is stored, and then compared on the holdout.

The order is what makes the verdict honest, so it is kept through crashes: the winner is in the database before the
first holdout row is decoded, and an interrupted look is the one that is finished. How scores are compared stands in
`finalists` and `verdict`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.baselines import trial_name
from llmsearch_optuna.optimize.crossed_look import CrossedLook
from llmsearch_optuna.optimize.evaluation import SearchRows, prompt_table
from llmsearch_optuna.optimize.halves import HalfScores, Halves
from llmsearch_optuna.optimize.holdout import StagePlan, TokenCosts, plan_stages
from llmsearch_optuna.optimize.holdout_look import HoldoutLook
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.scored_rows import corpus_mean, rows_with_score, store_scores
from llmsearch_optuna.optimize.signals import stoppable
from llmsearch_optuna.stats.finalists import Finalist, Selection, choose_finalists, pick_winner
from llmsearch_optuna.stats.replicate_allocation import DifferenceVariance, difference_variance
from llmsearch_optuna.storage.leases import Claim, ClaimLostError, Session
from llmsearch_optuna.storage.records import Look
from llmsearch_optuna.storage.row_record import RowRecord, mean, score_table
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import is_feasible, nearest, params_of, score_of

logger = logging.getLogger("llmsearch_optuna.optimize.selection")

VERDICT_CLAIM = -1
"""The claim's number: one worker decides, the others wait."""

WAIT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class WinnerSelector:
    """Selects the winner of a study whose trials have ended, and makes the verdict.

    Attributes:
        opened: The study.
        session: This worker.
        server: The backend that decodes.
        rows: The search rows.
        holdout: Row numbers that no trial has seen.
        replicates: How often a row is decoded for this when something is sampled; of a reserve, at most.
        reserve_budget: How many rows of a reserve may be decoded; None where the holdout is no reserve.
        max_tokens: Generated tokens that these may take; None for as many as it takes.
        finalists: How many of the best trials are decoded again, beside baseline and greedy.
        varies: Whether decoding again under these parameters can give another text.
        margin: See `search`.
        seed: Of the sampled permutations.
        callback: Gets an event when the holdout is decoded.
        baselines: Named ones that the winner is compared with besides; empty where only the one in use counts.
        halves: Where two halves of the rows judge each other's winner; None where there is a holdout.
    """

    opened: OpenedStudy
    session: Session
    server: RequestHandler
    rows: SearchRows
    holdout: Sequence[int]
    replicates: int
    reserve_budget: int | None
    max_tokens: int | None
    finalists: int
    varies: Callable[[Mapping[str, Any]], bool] = is_random
    margin: float | None
    seed: int
    callback: progress.Callback
    baselines: Mapping[str, GenerationParams] = field(default_factory=dict)
    halves: Halves | None = None

    def select(self) -> None:
        """Store the winner and the verdict; does nothing where the study has not changed since the last one.

        A worker that was away for longer than its lease may find that another one has taken this over: it waits for
        that one like any other worker, and finds what it has stored.
        """
        while True:
            try:
                self._decide(self._claim())
            except ClaimLostError:
                logger.info("the verdict was taken over by another worker; waiting for it")
            else:
                return

    def _decide(self, claim: Claim) -> None:
        trials = self.opened.study.get_trials(deepcopy=False)
        scores = {t.number: score_of(t) for t in trials if t.state is TrialState.COMPLETE}
        values = {number: score for number, score in scores.items() if score is not None}
        if not values:
            logger.warning("no trial is complete, so there is nothing to choose from")
            return
        last = self._last_look()
        if last is not None and last.verdict is None:
            last = self._finish(last, trials, claim)
        if last is not None and last.trials == len(trials):
            return
        begun = self._begin(trials, values, claim)
        if begun is None:
            return
        if last is not None and last.winners == begun.winners:
            again = replace(last, trials=len(trials), selection=begun.selection, halves=begun.halves)
            self.opened.records.write_look(_with_selection_of(again, last.winner), fence=claim)
            return
        look = replace(begun, look=1 if last is None else last.look + 1)
        self.opened.records.write_look(look, fence=claim)
        self._finish(look, trials, claim)

    def _begin(self, trials: Sequence[FrozenTrial], values: Mapping[int, float], claim: Claim) -> Look | None:
        """Choose the winner, or one of each half; None where a half has nothing to choose from."""
        if self.halves is not None:
            return self._begin_crossed(self.halves, trials, claim)
        feasible = {number: value for number, value in values.items() if is_feasible(trials[number])}
        selection = self._select(trials, feasible, claim) if feasible else self._nearest(trials)
        stages = self._stages(selection.winner, trials)
        shown = None if stages is None else stages.to_json()
        return Look(1, selection.winner, len(trials), selection.to_json(), stages=shown)

    def _begin_crossed(self, halves: Halves, trials: Sequence[FrozenTrial], claim: Claim) -> Look | None:
        selections = []
        for half, rows in enumerate(halves.parts):
            values = HalfScores(self.opened, halves).values(trials, half)
            if not values:
                logger.warning("no trial is complete on one half of the rows, so there is nothing to judge")
                return None
            selections.append(replace(self, rows=rows)._select(trials, values, claim).to_json())
        return Look(1, selections[0]["winner"], len(trials), selections[0], halves=tuple(selections))

    def _claim(self) -> Claim:
        while (claim := self.session.claim(VERDICT_CLAIM)) is None:
            with stoppable():
                time.sleep(WAIT_SECONDS)
        return claim

    def _last_look(self) -> Look | None:
        looks = self.opened.records.looks()
        return looks[-1] if looks else None

    def _select(self, trials: Sequence[FrozenTrial], values: Mapping[int, float], claim: Claim) -> Selection:
        """Score the finalists on fresh replicates and choose among them."""
        always = [t.number for t in trials if _is_baseline(str(t.user_attrs.get("role")))]
        numbers = choose_finalists(values, direction=self.rows.direction, always=always, k=self.finalists)
        found = self._finalist_records(trials, numbers, claim)
        try:
            tables = {number: self._table(records) for number, records in found.items()}
        except MetricError as error:
            logger.warning("finalists are compared without the error of their scores: %s", error)
            return self._select_by_corpus_value(found)
        return pick_winner(tables, direction=self.rows.direction)

    def _nearest(self, trials: Sequence[FrozenTrial]) -> Selection:
        """The trial that comes nearest to keeping the conditions, where none does."""
        limits = {c.name: c.limit.value for c in self.rows.constraints.conditions}
        found = nearest(trials, limits)
        assert found is not None
        value = score_of(found) or 0.0
        finalist = Finalist(number=found.number, mean=value, shrunken=value, error=0.0, standard_error=0.0)
        return Selection(winner=found.number, finalists=(finalist,), spread=0.0)

    def _table(self, records: Sequence[RowRecord]) -> list[list[float]]:
        """Scores by row, or what stands for them under a corpus metric."""
        if self.rows.task.metric.per_row is False:
            return prompt_table(self.rows, records, self.rows.order)
        return score_table(records, self.rows.order)

    def _finalist_records(
        self, trials: Sequence[FrozenTrial], numbers: Sequence[int], claim: Claim
    ) -> dict[int, list[RowRecord]]:
        """Fresh rows of finalists that sample; of the others those of the search, which fresh ones would equal."""
        stored = self.opened.records
        params = {number: params_of(trials[number]) for number in numbers}
        fresh = range(self.rows.replicates, self.rows.replicates + self.replicates)
        drawn = gather(
            self.server,
            stored,
            "finalists",
            {
                number: self.rows.requests(p, ("finalists", number), replicates=fresh)
                for number, p in params.items()
                if self.varies(p)
            },
            claim,
        )
        found: dict[int, list[RowRecord]] = {}
        for number in numbers:
            try:
                if number in drawn:
                    found[number] = store_scores(self.opened, self.rows, "finalists", number, drawn[number], claim)
                else:
                    found[number] = self._counted(stored.rows("search", number))
            except MetricError as error:
                logger.warning("trial %d is no finalist: %s", number, error)
        return found or {numbers[0]: self._counted(stored.rows("search", numbers[0]))}

    def _counted(self, records: Sequence[RowRecord]) -> list[RowRecord]:
        """Without rows that are set aside."""
        return [record for record in records if record.row in self.rows.places]

    def _select_by_corpus_value(self, found: Mapping[int, Sequence[RowRecord]]) -> Selection:
        """The best plain value: what is left where the metric answers for all rows only."""
        sign = 1.0 if self.rows.direction == "minimize" else -1.0
        means = {number: corpus_mean(self.rows, records) for number, records in found.items()}
        order = sorted(means, key=lambda number: (sign * means[number], number != 0, number))
        finalists = tuple(
            Finalist(number=n, mean=means[n], shrunken=means[n], error=0.0, standard_error=0.0) for n in order
        )
        return Selection(winner=order[0], finalists=finalists, spread=0.0)

    def _finish(self, look: Look, trials: Sequence[FrozenTrial], claim: Claim) -> Look:
        """Take the look that was begun, or say why there is none."""
        if self.halves is not None and look.halves is not None:
            winner, verdict = self._crossed_look(self.halves, look, trials, claim).verdict()
        else:
            winner, verdict = look.winner, self._holdout_look(look, trials, claim).verdict()
        done = _with_selection_of(replace(look, verdict=verdict.to_json()), winner)
        self.opened.records.write_look(done, fence=claim)
        return done

    def _stages(self, winner: int, trials: Sequence[FrozenTrial]) -> StagePlan | None:
        """Plan how a reserve is decoded, from what the search rows say of the two settings; None without one."""
        if self.reserve_budget is None or not self.holdout or winner == 0:
            return None
        tokens = {True: 0.0, False: 0.0}  # by whether decoding again can give another text
        for number in (0, winner):
            lengths = [max(1, r.tokens) for r in self.opened.records.rows("search", number) if r.error is None]
            tokens[self.varies(params_of(trials[number]))] += mean(lengths) if lengths else 1.0
        return plan_stages(
            [self.rows.task.distinct[row] for row in self.holdout],
            budget=self.reserve_budget,
            max_tokens=self.max_tokens,
            most_replicates=self.replicates,
            variance=self._difference_variance(winner),
            costs=TokenCosts(fixed=tokens[False], sampled=tokens[True]),
            most_stages=self.rows.most_stages,
        )

    def _difference_variance(self, winner: int) -> DifferenceVariance | None:
        """How much of a difference lies in the rows, from the finalists' replicates; None where that is not known."""
        stored = self.opened.records
        records = [stored.rows("finalists", number) or stored.rows("search", number) for number in (0, winner)]
        shared = set.intersection(*(rows_with_score(self.rows, found) for found in records))
        order = [row for row in self.rows.order if row in shared]
        if not order:
            return None
        try:
            baseline, best = (prompt_table(self.rows, found, order) for found in records)
        except MetricError:
            return None
        return difference_variance(baseline, best)

    def _crossed_look(self, halves: Halves, look: Look, trials: Sequence[FrozenTrial], claim: Claim) -> CrossedLook:
        return CrossedLook(
            opened=self.opened,
            server=self.server,
            rows=self.rows,
            halves=halves,
            replicates=self.replicates,
            varies=self.varies,
            seed=self.seed,
            callback=self.callback,
            baselines=self.baselines,
            look=look,
            trials=trials,
            claim=claim,
        )

    def _holdout_look(self, look: Look, trials: Sequence[FrozenTrial], claim: Claim) -> HoldoutLook:
        return HoldoutLook(
            opened=self.opened,
            server=self.server,
            rows=self.rows,
            holdout=self.holdout,
            replicates=self.replicates,
            varies=self.varies,
            margin=self.margin,
            seed=self.seed,
            callback=self.callback,
            baselines=self.baselines,
            look=look,
            trials=trials,
            claim=claim,
        )


def _with_selection_of(look: Look, winner: int) -> Look:
    """The look with this winner, and what its choice rested on."""
    if look.halves is None:
        return look
    selection = next(half for half in look.halves if half["winner"] == winner)
    return replace(look, winner=winner, selection=selection)


def _is_baseline(role: str) -> bool:
    return role in ("baseline", "greedy") or trial_name(role) != ""
