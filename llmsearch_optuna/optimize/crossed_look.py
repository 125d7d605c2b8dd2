"""Two halves judge each other: each half's winner is decoded on the other half, and all rows are compared together.

Both winners are stored before the first of these rows is decoded. What was decoded before is taken over: the baseline's
fresh replicates, and the rows of trials that were run on all rows. How scores are compared stands in `stats`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.halves import Halves
from llmsearch_optuna.optimize.loop import gather
from llmsearch_optuna.optimize.row_comparison import (
    check_corpus_score,
    compare_rows,
    compare_with_baselines,
    failing_rows,
    looks_taken,
)
from llmsearch_optuna.optimize.scored_rows import corpus_mean
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL, HalfOutcome, with_chosen
from llmsearch_optuna.stats.verdict import Verdict, baseline_won_both, unscored_verdict
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import Look, Phase
from llmsearch_optuna.storage.row_record import RowRecord
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
        others = compare_with_baselines(
            verdict,
            self.baselines,
            self.trials,
            self.look.winners,
            lambda number: self._judge(against=number, wanted={number, *self.look.winners}),
        )
        return chosen, verdict.with_baselines(others)

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
        failed = failing_rows(self.opened, self.rows, found, self.claim)
        order = [row for row in self.rows.order if row not in failed]
        if failed:
            logger.warning("rows %s could not be scored for the verdict and do not count", sorted(failed))
        if not order:
            return unscored_verdict(rows=len(self.rows.order), direction=self.rows.direction)
        kept = {number: self._kept(number, rows, failed) for number, rows in judged.items()}
        try:
            pooled = self._pooled(kept)
            check_corpus_score(self.rows, kept[against], pooled)
            verdict = compare_rows(
                self.rows,
                kept[against],
                pooled,
                order,
                seed=self.seed,
                look=looks_taken(self.opened.records) + 1,
                unscored=len(self.rows.order) - len(order),
                unseen_level=UNSEEN_LEVEL,
            )
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

    def _params(self, number: int) -> GenerationParams:
        return params_of(self.trials[number])
