"""Selects the winner: finalists are scored again, the winner is stored, and then compared on the holdout.

The order is what makes the verdict honest, so it is kept through crashes: the winner is in the database before the
first holdout row is decoded, and an interrupted look is the one that is finished. How scores are compared stands in
`finalists` and `verdict`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.baselines import trial_name
from llmsearch_optuna.optimize.evaluation import SearchRows, prompt_table
from llmsearch_optuna.optimize.holdout import StagePlan, TokenCosts, plan_stages
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.signals import stoppable
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.conditions import HOLDOUT_LEVEL, ConditionOutcome
from llmsearch_optuna.stats.corpus_comparison import compare_corpus
from llmsearch_optuna.stats.finalists import Finalist, Selection, choose_finalists, pick_winner
from llmsearch_optuna.stats.group_sequential import StageDesign, judge_stage
from llmsearch_optuna.stats.holm import BaselineComparison, against_all
from llmsearch_optuna.stats.optimism import Optimism, optimism
from llmsearch_optuna.stats.replicate_allocation import DifferenceVariance, difference_variance
from llmsearch_optuna.stats.verdict import (
    Verdict,
    baseline_won,
    infeasible_verdict,
    no_holdout_verdict,
    unscored_verdict,
)
from llmsearch_optuna.storage.leases import Claim, ClaimLostError, Session
from llmsearch_optuna.storage.records import Look, Phase, RowRecord, mean, score_table
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
        feasible = {number: value for number, value in values.items() if is_feasible(trials[number])}
        selection = self._select(trials, feasible, claim) if feasible else self._nearest(trials)
        shown = selection.to_json()
        if last is not None and last.winner == selection.winner:
            self.opened.records.write_look(replace(last, trials=len(trials), selection=shown), fence=claim)
            return
        stages = self._stages(selection.winner, trials)
        number = 1 if last is None else last.look + 1
        look = Look(number, selection.winner, len(trials), shown, stages=None if stages is None else stages.to_json())
        self.opened.records.write_look(look, fence=claim)
        self._finish(look, trials, claim)

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
                    found[number] = self._scored("finalists", number, drawn[number], claim)
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
        means = {number: self._corpus_mean(records) for number, records in found.items()}
        order = sorted(means, key=lambda number: (sign * means[number], number != 0, number))
        finalists = tuple(
            Finalist(number=n, mean=means[n], shrunken=means[n], error=0.0, standard_error=0.0) for n in order
        )
        return Selection(winner=order[0], finalists=finalists, spread=0.0)

    def _corpus_mean(self, records: Sequence[RowRecord]) -> float:
        replicates = sorted({r.replicate for r in records})
        return mean([self.rows.value([r for r in records if r.replicate == which]) for which in replicates])

    def _finish(self, look: Look, trials: Sequence[FrozenTrial], claim: Claim) -> Look:
        """Take the look that was begun, or say why there is none."""
        verdict = self._verdict(look, trials, claim)
        done = replace(look, verdict=verdict.to_json())
        self.opened.records.write_look(done, fence=claim)
        return done

    def _stages(self, winner: int, trials: Sequence[FrozenTrial]) -> StagePlan | None:
        """Plan how a reserve is decoded, from what the search rows say of the two settings; None without one."""
        if self.reserve_budget is None or not self.holdout or winner == 0:
            return None
        tokens = {True: 0.0, False: 0.0}  # by whether something is sampled
        for number in (0, winner):
            lengths = [max(1, len(r.token_ids)) for r in self.opened.records.rows("search", number) if r.error is None]
            tokens[is_random(params_of(trials[number]))] += mean(lengths) if lengths else 1.0
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
        shared = set.intersection(*(self._scored_rows(found) for found in records))
        order = [row for row in self.rows.order if row in shared]
        if not order:
            return None
        try:
            baseline, best = (prompt_table(self.rows, found, order) for found in records)
        except MetricError:
            return None
        return difference_variance(baseline, best)

    def _verdict(self, look: Look, trials: Sequence[FrozenTrial], claim: Claim) -> Verdict:
        direction = self.rows.direction
        if not is_feasible(trials[look.winner]):
            return infeasible_verdict(self._broken(trials[look.winner]), trial=look.winner, direction=direction)
        if not self.holdout:
            return no_holdout_verdict(rows=len(self.rows.task), direction=direction)
        if look.winner == 0:
            return baseline_won(direction=direction)
        if look.stages is not None:
            return self._staged_verdict(look, StagePlan.from_json(look.stages), trials, claim)
        held = Held(tuple(self.holdout), self.replicates)
        verdict = self._look_at(look, trials, claim, held)
        return verdict.with_baselines(self._against_all(verdict, look, trials, claim, held))

    def _staged_verdict(self, look: Look, plan: StagePlan, trials: Sequence[FrozenTrial], claim: Claim) -> Verdict:
        """Decode stage after stage until one ends the comparison; those that were decoded before cost nothing."""
        found: Verdict | None = None
        for stage, rows in enumerate(plan.rows):
            held = Held(tuple(self.holdout[:rows]), plan.replicates, plan.design, stage)
            found = judge_stage(partial(self._look_at, look, trials, claim, held), plan.design, stage)
            if found.stopped is not None or found.difference is None:
                break
        assert found is not None
        return found.with_baselines(self._against_all(found, look, trials, claim, held))

    def _against_all(
        self, verdict: Verdict, look: Look, trials: Sequence[FrozenTrial], claim: Claim, held: Held
    ) -> tuple[BaselineComparison, ...]:
        """The winner against every baseline, the one in use too; those that could not be compared are left out."""
        if not self.baselines or verdict.difference is None:
            return ()
        numbers = {str(t.user_attrs.get("fingerprint")): t.number for t in reversed(trials)}
        found = {name: numbers.get(params.fingerprint) for name, params in self.baselines.items()}
        in_use = next((name for name, number in found.items() if number == 0), "baseline")
        compared = {in_use: (0, verdict.difference, verdict.p_value or 0.0)}
        for name, number in found.items():
            if number is None or number in (0, look.winner):
                continue
            other = self._look_at(look, trials, claim, held, against=number)
            if other.difference is not None and other.p_value is not None:
                compared[name] = (number, other.difference, other.p_value)
        return against_all(compared, direction=self.rows.direction)

    def _look_at(
        self,
        look: Look,
        trials: Sequence[FrozenTrial],
        claim: Claim,
        held: Held,
        alpha: float = 0.05,
        against: int = 0,
    ) -> Verdict:
        """Decode what is not decoded yet of these held-out rows, and compare the winner with a baseline."""
        replicates = held.replicates if any(self.varies(params_of(trials[n])) for n in (against, look.winner)) else 1
        stages = 1 if held.design is None else len(held.design)
        self.callback.on(
            progress.VerdictStarted(rows=len(held.rows), replicates=replicates, stage=held.stage + 1, stages=stages)
        )
        wanted = {}
        for number in (against, look.winner):
            params = params_of(trials[number])
            repeats = range(held.replicates if self.varies(params) else 1)
            tag: tuple[Phase, int] = ("holdout", number)
            wanted[number] = self.rows.requests(params, tag, order=held.rows, replicates=repeats)
        found = gather(self.server, self.opened.records, "holdout", wanted, claim)
        return self._compare(look, trials, found, claim, held, alpha, against)

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

    def _conditions(
        self, winner: int, trials: Sequence[FrozenTrial], kept: Mapping[int, Sequence[RowRecord]], order: Sequence[int]
    ) -> tuple[ConditionOutcome, ...]:
        """How the conditions stand on the held-out rows, for the winner and for the baseline."""
        constraints, found = self.rows.constraints, {}
        for number in (winner, 0) if constraints else ():
            try:
                values = constraints.values(kept[number], self.rows.answers(kept[number]))
            except MetricError as error:
                logger.warning("a condition could not be checked on the holdout: %s", error)
                continue
            found[number] = constraints.standings(
                values,
                order,
                self.rows.task,
                max_new_tokens=params_of(trials[number]).max_new_tokens,
                level=HOLDOUT_LEVEL,
            )
        return tuple(
            ConditionOutcome.of(c.name, c.limit, found.get(winner, {}).get(c.name), found.get(0, {}).get(c.name))
            for c in constraints.conditions
        )

    def _compare(
        self,
        look: Look,
        trials: Sequence[FrozenTrial],
        found: dict[int, list[RowRecord]],
        claim: Claim,
        held: Held,
        alpha: float,
        against: int,
    ) -> Verdict:
        failed: set[int] = set()
        for number, records in found.items():
            failed |= {r.row for r in records if r.error is not None}
            failed |= self._rows_without_score(number, [r for r in records if r.error is None], claim)
        order = [row for row in held.rows if row not in failed]
        if failed:
            logger.warning("holdout rows %s could not be scored and do not count", sorted(failed))
        if not order:
            return unscored_verdict(rows=len(held.rows), direction=self.rows.direction)
        kept = {n: self._kept(n, records, failed) for n, records in found.items()}
        try:
            verdict = self._compared(look, kept, order, held, alpha, against)
        except MetricError as error:  # of all rows at once; what fails by row is left out above
            logger.warning("the holdout could not be scored: %s", error)
            return unscored_verdict(rows=len(held.rows), direction=self.rows.direction)
        if against != 0:
            return verdict
        return verdict.with_conditions(self._conditions(look.winner, trials, kept, order))

    def _kept(self, number: int, decoded: Sequence[RowRecord], failed: set[int]) -> list[RowRecord]:
        """What is stored of these records, with scores, without rows that failed."""
        keys = {(r.row, r.replicate) for r in decoded if r.row not in failed}
        return [r for r in self.opened.records.rows("holdout", number) if (r.row, r.replicate) in keys]

    def _compared(
        self,
        look: Look,
        kept: Mapping[int, Sequence[RowRecord]],
        order: Sequence[int],
        held: Held,
        alpha: float,
        against: int,
    ) -> Verdict:
        common: dict[str, Any] = {
            "prompts": [self.rows.task.distinct[row] for row in order],
            "bounds": self.rows.task.metric.bounds,
            "direction": self.rows.direction,
            "seed": self.seed,
            "margin": self.margin,
            "look": self._looks_taken() + 1,
            "unscored": len(held.rows) - len(order),
            "alpha": alpha,
            "planned": held.design and held.design.planned,
        }
        common["optimism"] = self._optimism(look.winner, kept, order) if against == 0 else None
        if self.rows.task.metric.per_row is False:
            # Of both: what cannot be computed at all is an error, not an open interval.
            for records in kept.values():
                self._corpus_mean(records)
            completions = {n: _completions(records, order) for n, records in kept.items()}
            return compare_corpus(
                self._corpus_score,
                completions[against],
                completions[look.winner],
                references=[self.rows.task.references[row] for row in order],
                rows=[self.rows.task.rows[row] for row in order],
                **common,
            )
        tables = {n: score_table(records, order) for n, records in kept.items()}
        return compare(tables[against], tables[look.winner], **common)

    def _optimism(self, winner: int, kept: Mapping[int, Sequence[RowRecord]], order: Sequence[int]) -> Optimism | None:
        """How much larger the winner's lead was on the search rows; None where a corpus metric cannot tell."""
        searched = {number: self.opened.records.rows("search", number) for number in (0, winner)}
        # A baseline that failed on its way has no scores from there on.
        shared = set.intersection(*(self._scored_rows(records) for records in searched.values()))
        searched_order = [row for row in self.rows.order if row in shared]
        if not searched_order:
            return None
        try:
            return optimism(
                self._gains(searched, winner, searched_order),
                self._gains(kept, winner, order),
            )
        except MetricError as error:
            logger.info("the optimism of the search is not known: %s", error)
            return None

    def _scored_rows(self, records: Sequence[RowRecord]) -> set[int]:
        """The rows that have a score in every replicate; of a corpus metric, a text."""
        needs_score = self.rows.task.metric.per_row is not False
        scored = Counter(r.row for r in records if r.error is None and (r.score is not None or not needs_score))
        replicates = len({r.replicate for r in records})
        return {row for row, count in scored.items() if count == replicates}

    def _gains(
        self, records: Mapping[int, Sequence[RowRecord]], winner: int, order: Sequence[int]
    ) -> NDArray[np.float64]:
        """The winner's gain over the baseline on each prompt of these rows, [prompts]."""
        first, second = (np.mean(prompt_table(self.rows, records[number], order), axis=1) for number in (0, winner))
        gains: NDArray[np.float64] = (second - first) * (-1.0 if self.rows.direction == "minimize" else 1.0)
        return gains

    def _corpus_score(
        self, completions: Sequence[Completion], references: Sequence[Any], rows: Sequence[Mapping[str, Any]], /
    ) -> float:
        """The metric, or not a number where it cannot be computed on rows that were drawn."""
        try:
            texts = [completion.text for completion in completions]
            return self.rows.task.metric.score_corpus(texts, references, rows, completions=completions)
        except MetricError:
            return math.nan

    def _looks_taken(self) -> int:
        verdicts = [look.verdict for look in self.opened.records.looks() if look.verdict is not None]
        return sum(Verdict.from_json(verdict).difference is not None for verdict in verdicts)

    def _rows_without_score(self, number: int, records: Sequence[RowRecord], claim: Claim) -> set[int]:
        """Score these holdout rows; returns those on which the metric fails."""
        failed: set[int] = set()
        while records:
            try:
                self._scored("holdout", number, records, claim)
                break
            except MetricError as error:
                rows = set(error.rows) & {r.row for r in records} or {r.row for r in records}
                failed |= rows
                records = [r for r in records if r.row not in rows]
        return failed

    def _scored(self, phase: Phase, number: int, records: Sequence[RowRecord], claim: Claim) -> list[RowRecord]:
        broken = next((r for r in records if r.error is not None), None)
        if broken is not None:
            raise MetricError(f"row {broken.row}: {broken.error}", [broken.row])
        scored = self.rows.score(records)
        self.opened.records.set_scores(phase, number, scored, fence=claim)
        return scored


def _is_baseline(role: str) -> bool:
    return role in ("baseline", "greedy") or trial_name(role) != ""


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


def _completions(records: Sequence[RowRecord], order: Sequence[int]) -> list[list[Completion]]:
    """Completions [rows][replicates], rows in this order."""
    found: dict[int, list[Completion]] = {row: [] for row in order}
    for record in sorted(records, key=lambda r: r.replicate):
        if record.row in found:
            found[record.row].append(record.completion)
    return list(found.values())
