"""One trial: rows are scored step by step until it is complete, pruned or failed.

Rows may arrive in any order and together with any others. A step of k rows uses exactly the first k rows of the study's
permutation, so that nothing here depends on time. The order of writing is records, report, artifact, tell; a crash
between two of them is healed by going through the same steps again, with the rows that are recorded.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import optuna
from optuna.trial import TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.engine.memory import gpu_bytes, process_bytes
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.constraints import RowKey, means, reason_to_prune
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.set_aside import BaselineRows
from llmsearch_optuna.optimize.signals import stoppable
from llmsearch_optuna.stats.conditions import Standing
from llmsearch_optuna.storage.artifacts import save_rows
from llmsearch_optuna.storage.leases import Claim
from llmsearch_optuna.storage.records import Phase
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer, by_row, mean
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.task.prepared_task import PreparedTask

logger = logging.getLogger("llmsearch_optuna.optimize.trial")

Role: TypeAlias = str
"""``"baseline"``, ``"greedy"``, ``"baseline NAME"``, ``"try_first"`` or ``"searched"``, which alone is pruned."""


@dataclass(frozen=True)
class TrialJob:
    """What a trial is to do; made by the trial_queue, the same after a crash.

    Attributes:
        number: Its number in the study.
        params: How it decodes; None where they were refused.
        refusal: Why they were refused.
        role: The baseline, greedy and what was to be tried first run in full, whatever they score.
        incumbent: Number of the trial that it is compared with.
        incumbent_scores: Scores of that trial, one a row, in the permutation; empty for a corpus metric.
        incumbent_running: What that trial reported at its steps.
        known_as: An earlier trial with the same parameters, whose rows are taken over (a user's own sampler).
        nested_with: Ended trials with the same parameters but for the number of samples; their samples are taken over.
        reported: Steps that Optuna knows already (a trial that was interrupted).
    """

    number: int
    params: GenerationParams | None
    role: Role = "searched"
    refusal: str | None = None
    incumbent: int | None = None
    incumbent_scores: tuple[float, ...] = ()
    incumbent_running: tuple[float, ...] = ()
    known_as: int | None = None
    nested_with: tuple[int, ...] = ()
    reported: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None
    reason: str | None


def _no_price(_prompt: float, _cached: float, _generated: float) -> None:
    return None


@dataclass
class TrialRun:
    """A trial under way.

    Args:
        job: What it does.
        rows: The search rows.
        opened: The study.
        claim: Makes the trial ours; losing it ends this run quietly.
        pruner: Ours, or an Optuna pruner that the study has, or None.
        callback: Gets an event for every step and for the end.
        stats: The engine's counters for this trial, read at its end.
        noise: How much scores vary where an engine does not repeat itself; see `PairedPruner.decide`.
        cost: What prompt tokens, cached ones and generated ones cost; None where no price is known.
        baseline: Says which rows do not count, since the baseline cannot decode them; None where all do.
    """

    job: TrialJob
    rows: SearchRows
    opened: OpenedStudy
    claim: Claim
    pruner: PairedPruner | optuna.pruners.BasePruner | None
    callback: progress.Callback
    stats: Callable[[], Mapping[str, Any]] = dict
    noise: float = 0.0
    cost: Callable[[float, float, float], float | None] = _no_price
    baseline: BaselineRows | None = None
    end: TrialEnd | None = None
    _records: dict[tuple[int, int], RowRecord] = field(default_factory=dict)
    _row_scores: list[float] = field(default_factory=list)
    _running: list[float] = field(default_factory=list)
    _folds: list[float] = field(default_factory=list)
    _steps_done: int = 0
    _set_aside: frozenset[int] = frozenset()
    _condition_values: dict[RowKey, dict[str, float]] = field(default_factory=dict)
    _standings: dict[str, Standing] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def tag(self) -> tuple[Phase, int]:
        """Whose requests these are."""
        return ("search", self.job.number)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that this run has taken."""
        return time.monotonic() - self._started

    @cached_property
    def _samples(self) -> SampleGatherer:
        return SampleGatherer(1 if self.job.params is None else self.job.params.samples)

    def start(self) -> Iterator[Request]:
        """Take over the rows that are stored, go through their steps, and return the requests that are left.

        They come row by row, each made when it is asked for.
        """
        self._trial = self.opened.trial(self.job.number)
        params = self.job.params
        self.callback.on(
            progress.TrialStarted(
                number=self.job.number,
                params=dict(params or {}),
                kind="refused" if params is None else params.kind,
                rows=len(self.rows.order),
            )
        )
        if params is None:
            self._finish(TrialEnd("failed", None, self.job.refusal))
            return iter(())
        self._take_over_known_rows()
        self.advance()
        if self.end is not None:
            return iter(())
        return (r for r in self.rows.iter_requests(params, self.tag) if not self._samples.has(r.row, r.replicate))

    def step_of(self, request: Request) -> int:
        """The number of the step that needs this row, 0 for the first."""
        return bisect.bisect_right(self.rows.steps, self.rows.places[request.row])

    def feed(self, finished: Sequence[Finished]) -> None:
        """Take rows that have been decoded, in any order; commits them, and takes the steps that are due.

        Raises:
            ClaimLostError: Another worker has taken this trial over.
        """
        if self.end is not None:
            return
        draws = [RowRecord.of(f) for f in finished]
        if self.job.number == 0 and self.baseline is not None:
            self._store_baseline(self.baseline, draws)
        else:
            self.opened.records.record("search", self.job.number, draws, fence=self.claim)
        self._take(draws)
        self.advance()

    def _store_baseline(self, baseline: BaselineRows, draws: Sequence[RowRecord]) -> None:
        """Store the baseline's rows; errors that end the study are not stored, so that these rows are asked again."""
        decoded = [r for r in draws if r.error is None]
        self.opened.records.record("search", 0, decoded, fence=self.claim)
        baseline.check_share(draws)
        self.opened.records.record("search", 0, [r for r in draws if r.error is not None], fence=self.claim)

    def _take(self, draws: Sequence[RowRecord]) -> None:
        """Take single samples; the rows that are whole by them count as there."""
        whole = self._samples.add(draws)
        self._records.update({(r.row, r.replicate): r for r in whole})
        if self.job.number == 0 and self.baseline is not None:
            self.baseline.take(whole)

    def lose(self) -> None:
        """Another worker has taken this trial over; what is known of the baseline's rows then comes from that one."""
        if self.job.number == 0 and self.baseline is not None:
            self.baseline.lose()

    @property
    def is_waiting(self) -> bool:
        """Whether all its rows are there, and only the baseline's are missing."""
        return self.end is None and all(key in self._records for key in self._keys(0, len(self.rows.order)))

    def _take_over_known_rows(self) -> None:
        stored, number = self.opened.records, self.job.number
        if self.job.known_as is not None:
            stored.record("search", number, stored.draws("search", self.job.known_as), fence=self.claim)
        for other in self.job.nested_with:
            stored.record("search", number, self._shared(stored.draws("search", other)), fence=self.claim)
        self._take(stored.draws("search", number))

    def _shared(self, draws: Sequence[RowRecord]) -> list[RowRecord]:
        """Of another trial's samples those that this one would decode to the same texts."""
        assert self.job.params is not None
        samples, rows = self.job.params.samples, self.rows.places
        return [replace(r, score=None) for r in draws if r.sample < samples and r.row in rows and r.error is None]

    def advance(self) -> None:
        """Take the steps that are due: their rows are there, and it is known which of them count.

        Raises:
            ClaimLostError: Another worker has taken this trial over.
        """
        steps = self.rows.steps
        while self.end is None and self._steps_done < len(steps):
            seen = steps[self._steps_done]
            begun = steps[self._steps_done - 1] if self._steps_done else 0
            new = self._keys(begun, seen)
            if any(key not in self._records for key in new):
                return
            set_aside = frozenset[int]() if self.baseline is None else self.baseline.set_aside(self.rows.order[:seen])
            if set_aside is None:
                return
            self._set_aside = set_aside
            if self.job.number == 0 and self.baseline is not None:
                self.baseline.store(seen)
            if self._keys(0, seen):
                self._take_step(seen, self._keys(begun, seen))
            self._steps_done += 1

    def _take_step(self, seen: int, new: Sequence[tuple[int, int]]) -> None:
        """Score the new rows, commit, report, and see whether this is an end."""
        failed = next((self._records[key] for key in new if self._records[key].error is not None), None)
        if failed is not None:
            self._finish(TrialEnd("failed", None, f"row {failed.row}: {failed.error}"))
            return
        values: list[float] | None = None
        try:
            scored = self.rows.score([self._records[key] for key in new])
            self._commit_scores(scored)
            value = self._value(seen, scored)
            self._judge_conditions(scored)
            if seen == len(self.rows.order):
                all_rows = [self._records[key] for key in self._keys(0, seen)]
                self._folds = self.rows.fold_values(all_rows)
                values = self._values(value, all_rows)
        except MetricError as error:
            self._finish(TrialEnd("failed", None, str(error)))
            return
        self._running.append(value)
        self._report(value, seen)
        if seen == len(self.rows.order):
            self._finish(TrialEnd("complete", value, None), values)
        elif (reason := self._reason_to_prune(seen)) is not None:
            self._finish(TrialEnd("pruned", value, reason))

    def _judge_conditions(self, scored: Sequence[RowRecord]) -> None:
        constraints = self.rows.constraints
        if not constraints:
            return
        assert self.job.params is not None
        with stoppable():
            self._condition_values |= constraints.values(scored, self.rows.answers(scored))
        self._standings = constraints.standings(
            self._condition_values,
            [row for row in self.rows.order if row not in self._set_aside],
            self.rows.task,
            most_tokens=self.job.params.most_tokens,
        )

    def _commit_scores(self, scored: Sequence[RowRecord]) -> None:
        changed = [r for r in scored if self._records[r.row, r.replicate].score is None]
        self.opened.records.set_scores("search", self.job.number, changed, fence=self.claim)
        self._records.update({(r.row, r.replicate): r for r in scored})

    def _value(self, seen: int, scored: Sequence[RowRecord]) -> float:
        if self.rows.task.metric.per_row is False:
            return self.rows.value([self._records[key] for key in self._keys(0, seen)])
        self._row_scores += by_row(scored, [r.row for r in scored])
        return mean(self._row_scores)

    def _report(self, value: float, seen: int) -> None:
        # A trial with several objectives takes no reports; what it had scored by then is recorded all the same.
        if seen not in self.job.reported and self.rows.objectives.is_single:
            with self._ours():
                self._trial.report(value, seen)
        compared = self.job.incumbent_running
        self.callback.on(
            progress.RowsScored(
                number=self.job.number,
                rows_done=seen,
                rows_total=len(self.rows.order),
                mean=value,
                incumbent_mean=compared[self._steps_done] if self._steps_done < len(compared) else None,
            )
        )

    def _reason_to_prune(self, seen: int) -> str | None:
        if self.pruner is None or self.job.role != "searched":
            return None
        if (reason := reason_to_prune(self._standings, seen, len(self.rows.order))) is not None:
            return reason
        if isinstance(self.pruner, optuna.pruners.BasePruner):
            return f"by {type(self.pruner).__name__} after {seen} rows" if self._trial.should_prune() else None
        if self.job.incumbent is None:
            return None
        total, direction = len(self.rows.order), self.rows.direction
        level = self.pruner.level(seen, total)
        if self.rows.task.metric.per_row is False:
            decision = self.pruner.decide_running(self._running, self.job.incumbent_running, total, direction=direction)
        else:
            decision = self.pruner.decide(
                self._row_scores,
                self.job.incumbent_scores,
                len(self.job.incumbent_scores),
                bounds=self.rows.task.metric.bounds,
                direction=direction,
                level=level,
                noise=self.noise,
            )
        return None if decision is None else f"{decision.reason} (the incumbent is trial {self.job.incumbent})"

    def _finish(self, end: TrialEnd, values: list[float] | None = None) -> None:
        """Write attributes, artifact, and then the state itself: nothing can be added after it.

        Args:
            end: How the trial ended.
            values: Its objectives, where it is complete.
        """
        counted = self._rows_counted(end)
        records = [self._records[key] for key in (self._keys(0, counted) if counted else ())]
        with self._ours():
            for name, value in self._attributes(end, counted, records).items():
                self._trial.set_user_attr(name, value)
            if end.state != "failed":
                self._set_constraints()
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        with self._ours():
            save_rows(self.opened, self._trial, records, self._task(), replicates=self.rows.replicates)
            self.callback.on(
                progress.TrialEnding(
                    number=self.job.number, state=end.state, value=end.value, reason=end.reason, rows_done=counted
                )
            )
            self.opened.study.tell(self._trial, values, state=states[end.state])
        if self.job.number == 0 and self.baseline is not None:
            self.baseline.end()
        self.end = end

    def _task(self) -> PreparedTask:
        """The task with the prompts that this trial was decoded with."""
        return self.rows.task if self.job.params is None else self.rows.task.under(self.job.params)

    def _values(self, value: float, records: Sequence[RowRecord]) -> list[float]:
        objectives = self.rows.objectives
        if objectives.is_single:
            return objectives.values(value, records)
        with stoppable():
            return objectives.values(value, records, self.rows.answers(records))

    def _set_constraints(self) -> None:
        """Tell Optuna, and thereby every sampler of it, how far the conditions are broken; 0 or less is feasible."""
        for name, found in self._standings.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # after a crash between here and the end it is there already
                self._trial.set_constraint(name, found.violation)

    def _rows_counted(self, end: TrialEnd) -> int:
        steps = [0, *self.rows.steps]
        return steps[self._steps_done] if end.state == "failed" else steps[self._steps_done + 1]

    def _attributes(self, end: TrialEnd, counted: int, records: Sequence[RowRecord]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rows": f"{counted} of {len(self.rows.order)}",
            "tokens": sum(r.tokens for r in records),
            "seconds": round(self.seconds, 2),
            "memory": f"{process_bytes() / 1e9:.2f} GB",
        }
        # By the rows that count, so that a budget ends the study at the same trial after any interruption.
        if (cost := self.cost(sum(r.asked_tokens for r in records), 0, found["tokens"])) is not None:
            found["cost"] = round(cost, 9)
        if (on_gpus := gpu_bytes()) is not None:
            found["gpu_memory"] = f"{on_gpus / 1e9:.2f} GB"
        if records:
            reasons = [sample.finish_reason for record in records for sample in record.samples]
            found["cut_by_length"] = f"{sum(reason == 'length' for reason in reasons) / len(reasons):.0%}"
        if end.reason is not None:
            found["prune_reason" if end.state == "pruned" else "fail_reason"] = end.reason[:1000]
        if end.state != "failed" and (parts := self.rows.part_means(records)):
            found["metric_parts"] = parts
        if end.state != "failed" and self._condition_values:
            found["conditions"] = means(self._condition_values)
        if self._folds and end.state == "complete":
            found["fold_scores"] = self._folds
        if stats := {k: v for k, v in self.stats().items() if v}:
            found["engine"] = stats
        return found

    @contextlib.contextmanager
    def _ours(self) -> Iterator[None]:
        """Write only while the claim is ours; what Optuna says about a successor's work means that it is not."""
        self._check_claim()
        try:
            yield
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self._check_claim()
            raise

    def _check_claim(self) -> None:
        with self.opened.database.begin() as connection:
            self.claim.check(connection)

    def _keys(self, begin: int, end: int) -> list[tuple[int, int]]:
        assert self.job.params is not None
        replicates = self.rows.replicates_of(self.job.params)
        counted = (row for row in self.rows.order[begin:end] if row not in self._set_aside)
        return [(row, replicate) for row in counted for replicate in replicates]
