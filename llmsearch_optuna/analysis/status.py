"""The status of a study, read from its database: running trials, throughput, time left.

For other processes than those that work on it; nothing is decided or written here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.optimize.draws import stored_draws
from llmsearch_optuna.optimize.holdout import StagePlan
from llmsearch_optuna.progress import RunningTrial, VerdictStarted, WorkMeasured
from llmsearch_optuna.progress.time_left import LATEST, Interval, covered_seconds, seconds_per_trial, trials_left
from llmsearch_optuna.storage.leases import live_workers
from llmsearch_optuna.storage.records import Look
from llmsearch_optuna.storage.row_record import RowRecord, by_row, mean
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import best_complete, direction_of, half_of, params_of, rows_asked
from llmsearch_optuna.types import Direction

_RESUMED_AFTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """The status of a study.

    Attributes:
        workers: Processes that are at work on it.
        running: Trials that are running or were interrupted, by number.
        work: How the work goes.
        seconds_left: What the remaining trials will take; None where nobody is at work, or too little is known.
        stage: The stage of the verdict that is under way; None where none is.
    """

    workers: int
    running: tuple[RunningTrial, ...]
    work: WorkMeasured
    seconds_left: float | None
    stage: VerdictStarted | None = None


def read_status(opened: OpenedStudy, n_trials: int) -> StudyStatus:
    """Read the status of a study at this moment."""
    trials = opened.study.get_trials(deepcopy=False)
    begun = list(live_workers(opened.database, opened.key).values())
    counts = opened.records.row_counts("search")
    in_flight, direction = int(opened.records.fingerprint()["trials_in_flight"]), direction_of(opened.study)
    settings = opened.records.settings()
    running = tuple(
        _running_trial(
            trial,
            rows_asked(trial, settings),
            so_far(opened, trial),
            incumbent_mean(trials, trial, in_flight, direction),
        )
        for trial in trials
        if trial.state is TrialState.RUNNING and "params" in trial.user_attrs
    )
    left = None
    if begun and (per_trial := seconds_per_trial(_ended(trials, counts))):
        ended = sum(trial.state.is_finished() for trial in trials)
        left = trials_left(n_trials, ended, (t.rows_done / t.rows_total for t in running)) * per_trial or None
    looks = opened.records.looks()
    stage = stage_of(opened, looks[-1], trials) if looks and looks[-1].verdict is None else None
    return StudyStatus(len(begun), running, work_of(trials, counts, begun), left, stage)


def stage_of(opened: OpenedStudy, look: Look, trials: Sequence[FrozenTrial]) -> VerdictStarted | None:
    """Return the stage of a reserve that is under way, or the last one; None for a look at all rows at once.

    Args:
        opened: The study.
        look: At its holdout.
        trials: All trials of the study.
    """
    if look.stages is None:
        return None
    plan = StagePlan.from_json(look.stages)
    varies = stored_draws(opened).varies
    sampled = {number: varies(params_of(trials[number])) for number in (0, look.winner)}
    decoded = opened.records.row_counts("holdout").get(look.winner, 0)
    stage = plan.stage_of(decoded // (plan.replicates if sampled[look.winner] else 1))
    replicates = plan.replicates if any(sampled.values()) else 1
    return VerdictStarted(rows=plan.rows[stage - 1], replicates=replicates, stage=stage, stages=len(plan.rows))


def work_of(trials: Sequence[FrozenTrial], counts: Mapping[int, int], workers_begun: Sequence[float]) -> WorkMeasured:
    """How the work goes, by the latest trials.

    Args:
        trials: All trials of the study.
        counts: Trial number -> rows that have been decoded for it.
        workers_begun: When each process that is at work began.
    """
    intervals = _ended(trials, counts)[-LATEST:] + _under_way(trials, counts, workers_begun)
    engines = [trial.user_attrs.get("engine", {}) for trial in trials]
    tokens = sum(engine.get("tokens", 0) for engine in engines)
    last = max((t for t in trials if t.datetime_complete), key=lambda t: _moment(t.datetime_complete), default=None)
    memory = {} if last is None else last.user_attrs
    return WorkMeasured(
        rows_per_second=_rate(intervals),
        replayed_share=sum(engine.get("replayed_tokens", 0) for engine in engines) / tokens if tokens else None,
        memory=_bytes(memory.get("memory")),
        gpu_memory=_bytes(memory.get("gpu_memory")),
    )


def incumbent_mean(
    trials: Sequence[FrozenTrial], trial: FrozenTrial, in_flight: int, direction: Direction
) -> float | None:
    """The mean, over the rows that a trial has done, of the best trial that it is compared with."""
    # Of a study of two halves, trials of all rows did others by then: only those of the same half compare.
    alike = [t for t in trials[: max(0, trial.number - in_flight + 1)] if half_of(t) == half_of(trial)]
    incumbent = best_complete(alike, direction)
    seen = max(trial.intermediate_values, default=0)
    return None if incumbent is None else incumbent.intermediate_values.get(seen)


def _mean_so_far(records: Sequence[RowRecord]) -> tuple[int, float | None]:
    """Rows done and the mean over them, of a trial's rows.

    Rows are scored step by step, so those with a score count; a metric of all rows scores none of them, and there it
    can only be said how many were decoded.
    """
    scored = [r for r in records if r.score is not None]
    done = list(dict.fromkeys(r.row for r in scored or records))
    return len(done), mean(by_row(scored, done)) if scored else None


def so_far(opened: OpenedStudy, trial: FrozenTrial) -> tuple[int, float | None]:
    """How many rows a trial has done, and its mean over them."""
    if len(opened.study.directions) > 1:  # such trials cannot report
        return _mean_so_far(opened.records.rows("search", trial.number))
    seen = max(trial.intermediate_values, default=0)
    return seen, trial.intermediate_values.get(seen)


def _running_trial(
    trial: FrozenTrial, rows_total: int, done: tuple[int, float | None], compared: float | None
) -> RunningTrial:
    rows_done, mean_of_rows = done
    return RunningTrial(
        number=trial.number,
        params=trial.user_attrs["params"],
        kind=str(trial.user_attrs.get("kind", "")),
        rows_total=rows_total,
        rows_done=rows_done,
        mean=mean_of_rows,
        incumbent_mean=compared,
    )


def _ended(trials: Sequence[FrozenTrial], counts: Mapping[int, int]) -> list[Interval]:
    """Trials that were run in one piece, in the order in which they ended."""
    found = []
    for trial in trials:
        if trial.datetime_complete is None or trial.datetime_start is None or "seconds" not in trial.user_attrs:
            continue
        end, seconds = _moment(trial.datetime_complete), float(trial.user_attrs["seconds"])
        # One that was interrupted brought rows along that cost this piece of it no time.
        if end - seconds - _moment(trial.datetime_start) < _RESUMED_AFTER_SECONDS:
            found.append(Interval(end - seconds, end, counts.get(trial.number, 0)))
    return sorted(found, key=lambda interval: interval.ended)


def _under_way(
    trials: Sequence[FrozenTrial], counts: Mapping[int, int], workers_begun: Sequence[float]
) -> list[Interval]:
    """Running trials that were begun by processes which still are at work."""
    if not workers_begun:
        return []
    now, first = time.time(), min(workers_begun)
    return [
        Interval(_moment(t.datetime_start), now, counts.get(t.number, 0))
        for t in trials
        if t.state is TrialState.RUNNING and t.datetime_start is not None and _moment(t.datetime_start) >= first
    ]


def _rate(intervals: Sequence[Interval]) -> float | None:
    seconds, rows = covered_seconds(intervals), sum(interval.rows for interval in intervals)
    return rows / seconds if rows and seconds > 0 else None


def _moment(time_of_day: datetime | None) -> float:
    return 0.0 if time_of_day is None else time_of_day.timestamp()


def _bytes(text: str | None) -> int | None:
    """``1.23 GB``, as a trial's attribute says it."""
    return None if text is None else round(float(text.removesuffix(" GB")) * 1e9)
