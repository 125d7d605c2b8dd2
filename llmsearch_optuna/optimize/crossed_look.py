"""Two halves judge each other: each half's winner is decoded on the other half, and all rows are compared together.

Both winners are stored before the first of these rows is decoded. What was decoded before is taken over: the baseline's
fresh replicates, and the rows of trials that were run on all rows. How scores are compared stands in `stats`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.baselines import UNNAMED
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.halves import Halves
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.scored_rows import (
    completions_by_row,
    corpus_mean,
    corpus_score,
    score_without_failing,
    store_scores,
)
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.corpus_comparison import compare_corpus
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL, HalfOutcome, with_chosen
from llmsearch_optuna.stats.holm import BaselineComparison, against_all
from llmsearch_optuna.stats.verdict import Verdict, baseline_won_both, unscored_verdict
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import Look, Phase, RowRecord, score_table
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import params_of

logger = logging.getLogger("llmsearch_optuna.optimize.crossed_look")


@dataclass(frozen=True, kw_only=True)
class CrossedLook:
    """A look that has begun: the winner of each half is stored.

    Attributes:
        opened: The study.
        server: The backend that decodes.
        rows: All rows.
        halves: The same in two halves.
        replicates: How often a row is decoded where something is sampled.
        varies: Whether decoding again under these parameters can give another text.
        seed: Of the sampled permutations.
        callback: Gets an event when the winners are decoded.
        baselines: Named ones that the winners are compared with besides; empty where only the one in use counts.
        look: Its winners.
        trials: Those of the study.
        claim: Says that the work is ours.
    """

    opened: OpenedStudy
    server: RequestHandler
    rows: SearchRows
    halves: Halves
    replicates: int
    varies: Callable[[Mapping[str, Any]], bool]
    seed: int
    callback: progress.Callback
    baselines: Mapping[str, GenerationParams]
    look: Look
    trials: Sequence[FrozenTrial]
    claim: Claim

    def verdict(self) -> tuple[int, Verdict]:
        """Decode what is not decoded yet, and compare; returns the winner that may be recommended, too."""
        if set(self.look.winners) == {0}:
            return 0, baseline_won_both(direction=self.rows.direction)
        verdict = self._judge(against=0, wanted={0, *self.look.winners})
        chosen = next((half.trial for half in verdict.halves if half.is_chosen), self.look.winners[0])
        return chosen, verdict.with_baselines(self._against_all(verdict))

    def _against_all(self, verdict: Verdict) -> tuple[BaselineComparison, ...]:
        """The winners against every baseline, the one in use too; those that could not be compared are left out."""
        if not self.baselines or verdict.difference is None:
            return ()
        numbers = {str(t.user_attrs.get("fingerprint")): t.number for t in reversed(self.trials)}
        found = {name: numbers.get(params.fingerprint) for name, params in self.baselines.items()}
        in_use = next((name for name, number in found.items() if number == 0), UNNAMED)
        compared = {in_use: (0, verdict.difference, verdict.p_value or 0.0)}
        for name, number in found.items():
            if number is None or number == 0 or set(self.look.winners) == {number}:
                continue
            other = self._judge(against=number, wanted={number, *self.look.winners})
            if other.difference is not None and other.p_value is not None:
                compared[name] = (number, other.difference, other.p_value)
        return against_all(compared, direction=self.rows.direction)

    def _judge(self, against: int, wanted: Iterable[int]) -> Verdict:
        """Compare the winners, each on the half that it has not seen, with a baseline on all rows."""
        judged = {number: self._judged_rows(number, against) for number in sorted(set(wanted))}
        varying = any(self.varies(self._params(number)) for number in judged)
        self.callback.on(
            progress.VerdictStarted(
                rows=len(self.rows.order), replicates=self.replicates if varying else 1, halves=True
            )
        )
        requests = {}
        for number, rows in judged.items():
            params = self._params(number)
            tag: tuple[Phase, int] = ("holdout", number)
            requests[number] = self.rows.requests(params, tag, order=rows, replicates=self._replicates_of(number))
            self._take_over(number, {(r.row, r.replicate) for r in requests[number]})
        found = gather(self.server, self.opened.records, "holdout", requests, self.claim)
        failed: set[int] = set()
        for number, records in found.items():
            failed |= {r.row for r in records if r.error is not None}
            failed |= self._rows_without_score(number, [r for r in records if r.error is None])
        order = [row for row in self.rows.order if row not in failed]
        if failed:
            logger.warning("rows %s could not be scored for the verdict and do not count", sorted(failed))
        if not order:
            return unscored_verdict(rows=len(self.rows.order), direction=self.rows.direction)
        kept = {number: self._kept(number, rows, failed) for number, rows in judged.items()}
        try:
            verdict = self._compared(kept[against], self._pooled(kept), order)
            return verdict.with_halves(self._outcomes(kept, against, failed))
        except MetricError as error:
            logger.warning("the verdict's rows could not be scored: %s", error)
            return unscored_verdict(rows=len(self.rows.order), direction=self.rows.direction)

    def _judged_rows(self, number: int, against: int) -> list[int]:
        """All rows for a baseline; of a winner those of the half that has not chosen it."""
        if number == against:
            return list(self.rows.order)
        places = set[int]()
        for half, winner in enumerate(self.look.winners):
            if winner == number:
                places |= set(self.halves.parts[1 - half].order)
        return [row for row in self.rows.order if row in places]

    def _replicates_of(self, number: int) -> range:
        """Those that the finalists were decoded with; one where nothing varies."""
        if not self.varies(self._params(number)):
            return range(1)
        return range(self.rows.replicates, self.rows.replicates + self.replicates)

    def _take_over(self, number: int, wanted: set[tuple[int, int]]) -> None:
        """Take what was decoded of a trial of all rows before: it is what would be decoded again."""
        stored = self.opened.records
        phase: Phase = "finalists" if self.varies(self._params(number)) else "search"
        known = [r for r in stored.draws(phase, number) if (r.row, r.draw) in wanted and r.error is None]
        stored.record("holdout", number, known, fence=self.claim)

    def _rows_without_score(self, number: int, records: Sequence[RowRecord]) -> set[int]:
        _, failed = score_without_failing(
            records, lambda left: store_scores(self.opened, self.rows, "holdout", number, left, self.claim)
        )
        return failed

    def _kept(self, number: int, rows: Iterable[int], failed: set[int]) -> list[RowRecord]:
        counted, replicates = set(rows) - failed, self._replicates_of(number)
        stored = self.opened.records.rows("holdout", number)
        return [r for r in stored if r.row in counted and r.replicate in replicates]

    def _pooled(self, kept: Mapping[int, Sequence[RowRecord]]) -> list[RowRecord]:
        """Of each row what the winner wrote that had not seen it.

        One half's winner may be decoded once and the other's several times; then what the first wrote stands for each
        replicate of it.
        """
        groups = []
        for half, winner in enumerate(self.look.winners):
            rows = self.halves.parts[1 - half].places
            groups.append([record for record in kept[winner] if record.row in rows])
        numbers = [sorted({record.replicate for record in group}) for group in groups]
        most = max(map(len, numbers))
        return [
            replace(record, replicate=copy)
            for group, known in zip(groups, numbers, strict=True)
            for record in group
            for copy in (range(most) if len(known) == 1 else [known.index(record.replicate)])
        ]

    def _compared(self, baseline: Sequence[RowRecord], winners: Sequence[RowRecord], order: Sequence[int]) -> Verdict:
        common: dict[str, Any] = {
            "prompts": [self.rows.task.distinct[row] for row in order],
            "bounds": self.rows.task.metric.bounds,
            "direction": self.rows.direction,
            "seed": self.seed,
            "look": self._looks_taken() + 1,
            "unscored": len(self.rows.order) - len(order),
            "unseen_level": UNSEEN_LEVEL,
        }
        if self.rows.task.metric.per_row is False:
            for records in (baseline, winners):
                corpus_mean(self.rows, records)  # what cannot be computed at all is an error, not an open interval
            return compare_corpus(
                partial(corpus_score, self.rows),
                completions_by_row(baseline, order),
                completions_by_row(winners, order),
                references=[self.rows.task.references[row] for row in order],
                rows=[self.rows.task.rows[row] for row in order],
                **common,
            )
        return compare(score_table(baseline, order), score_table(winners, order), **common)

    def _outcomes(
        self, kept: Mapping[int, Sequence[RowRecord]], against: int, failed: set[int]
    ) -> tuple[HalfOutcome, ...]:
        """What each half's winner did, on the other half and on all rows."""
        found = []
        for half, winner in enumerate(self.look.winners):
            own, other = self.halves.parts[half].places, self.halves.parts[1 - half].places
            judged = [r for r in kept[winner] if r.row in other]
            chosen_on = [r for r in self._known(winner) if r.row in own and r.row not in failed]
            baseline = kept[against]
            found.append(
                HalfOutcome(
                    trial=winner,
                    rows=len({r.row for r in judged}),
                    difference=self._mean(judged) - self._mean([r for r in baseline if r.row in other]),
                    overall=self._mean([*judged, *chosen_on]) - self._mean(baseline),
                )
            )
        return with_chosen(found, self.rows.direction)

    def _known(self, number: int) -> list[RowRecord]:
        """What a finalist was chosen by."""
        phase: Phase = "finalists" if self.varies(self._params(number)) else "search"
        replicates = self._replicates_of(number)
        return [r for r in self.opened.records.rows(phase, number) if r.replicate in replicates and r.error is None]

    def _mean(self, records: Sequence[RowRecord]) -> float:
        return corpus_mean(self.rows, records) if records else 0.0

    def _looks_taken(self) -> int:
        verdicts = [look.verdict for look in self.opened.records.looks() if look.verdict is not None]
        return sum(Verdict.from_json(verdict).difference is not None for verdict in verdicts)

    def _params(self, number: int) -> GenerationParams:
        return params_of(self.trials[number])
