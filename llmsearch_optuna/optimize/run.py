"""The whole story of a search: prepare, open the study, run its trials, choose the winner, pruner it on the holdout."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import optuna

from llmsearch_optuna import progress as events
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.callbacks import BatchSizeCallback, ForecastCallback, PowerCallback, ThroughputCallback
from llmsearch_optuna.optimize.changed_data import changed_rows
from llmsearch_optuna.optimize.draws import examine_draws, stored_draws
from llmsearch_optuna.optimize.evaluation import requests_for
from llmsearch_optuna.optimize.halves import HalfScores
from llmsearch_optuna.optimize.judged_study import note_judge
from llmsearch_optuna.optimize.loop import run_trials
from llmsearch_optuna.optimize.plan import Plan, readable
from llmsearch_optuna.optimize.prepare import Prepared, given_name
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.request_queue import RequestQueue
from llmsearch_optuna.optimize.selection import WinnerSelector
from llmsearch_optuna.optimize.set_aside import BaselineRows, set_aside_sentence, stored_set_aside
from llmsearch_optuna.optimize.signals import interruptible, resume_hint
from llmsearch_optuna.optimize.space_points import parameter_ends
from llmsearch_optuna.optimize.throughput import ThroughputMeter, counters_since, stored_engine_work
from llmsearch_optuna.optimize.trial import TrialJob, TrialRun
from llmsearch_optuna.optimize.trial_queue import TrialQueue
from llmsearch_optuna.options import StudyOptions
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.leases import Claim, Session
from llmsearch_optuna.storage.study import ChangedStudyError, OpenedStudy, open_study, read_study
from llmsearch_optuna.storage.trials import best_complete, score_of
from llmsearch_optuna.task.prepared_task import PreparedTask

logger = logging.getLogger("llmsearch_optuna.optimize.run")


class Summarized(Protocol):
    """A result that can be said in a sentence or two."""

    @property
    def summary(self) -> str:
        """One or two sentences for people."""
        ...


Result = TypeVar("Result", bound=Summarized)

_FINALISTS_BEFORE = 3
"""Of studies from before there was a choice; it is left out of the fingerprint, so that they go on."""


def run_study(
    prepared: Prepared,
    options: StudyOptions,
    *,
    callbacks: Sequence[events.Callback],
    study_callbacks: Callable[[OpenedStudy, Plan], Sequence[events.Callback]],
    result_of: Callable[[OpenedStudy, Plan], Result],
) -> Result:
    """Open the study, run its trials, choose the winner, and compare it with the baseline on the holdout.

    Args:
        prepared: The study before it begins.
        options: Of `search`, those with defaults too.
        callbacks: Take every event first, in this order.
        study_callbacks: Makes the callbacks that need the opened study; they come after those of every search.
        result_of: Makes the result of the study.

    Raises:
        StudyError: The study cannot be opened, or was started with something else.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    plan, served = prepared.plan, prepared.served
    if options["max_cost"] is not None and served.backend.cost(0, 0, 0) is None:
        raise InputError(
            f"max_cost={options['max_cost']!r} needs to know what tokens cost; give the server's price="
            "{'input': 0.5, 'output': 1.5}, of a million tokens"
        )
    total = prepared.total_trials(options["n_trials"])
    deadline = None if options["timeout"] is None else time.monotonic() + options["timeout"]
    opened = _open(prepared, options)
    with (
        contextlib.closing(opened),
        storage_errors(opened.address),
        interruptible(lambda: resume_hint(opened, total)),
        Session(opened.database, opened.key) as session,
    ):
        plan.write(opened, served, n_trials=total, seed=options["seed"])
        trial_queue = _trial_queue(prepared, options, opened, session, total)
        baseline_rows = BaselineRows(
            opened, plan.rows, len(plan.rows.replicates_of(plan.baseline)), plan.baseline.samples
        )
        meter = ThroughputMeter(served.backend, lambda: served.stats)
        all_callbacks = events.CallbackList(
            [
                *callbacks,
                ThroughputCallback(meter),
                BatchSizeCallback(opened.records, served),
                PowerCallback(opened, plan, options["holdout_replicates"]),
                *study_callbacks(opened, plan),
                ForecastCallback(opened, prepared, meter, total, options["holdout_replicates"], options["finalists"]),
            ]
        )
        all_callbacks.on(_study_started(trial_queue, _notes(opened, plan), plan.split_note))
        if not opened.resumed:
            _warn_of_the_engine(prepared)
        if not (trial_queue.is_over() and trial_queue.all_ended()):
            examine_draws(served.backend, plan.rows, _probed(prepared), opened)
        with stored_engine_work(opened.study, session.owner, lambda: served.stats):
            make_run = functools.partial(_trial_run, prepared, opened, baseline_rows, all_callbacks)
            run_trials(trial_queue, RequestQueue(meter, served.capacity), make_run, all_callbacks, deadline=deadline)
            _warn_if_ended_early(trial_queue, deadline)
            _winner_selector(prepared, options, opened, session, all_callbacks).select()
            note_judge(opened, plan.task.metric)
        result = result_of(opened, plan)
        all_callbacks.on(events.StudyEnded(result_summary=result.summary))
    return result


def _warn_of_the_engine(prepared: Prepared) -> None:
    rows = prepared.plan.rows
    once = prepared.plan.baseline.one_sample
    requests = requests_for(rows.task, once, "probe", order=rows.order[:8], replicates=[0])
    ends = parameter_ends(prepared.space, prepared.served.defaults)
    decoded = [replace(end, low=end.low.decoding, high=end.high.decoding) for end in ends]
    for warning in prepared.served.backend.warnings(requests, decoded):
        logger.warning("%s", warning)


def _probed(prepared: Prepared) -> dict[str, GenerationParams]:
    """What is asked again to see whether the engine repeats itself."""
    plan = prepared.plan
    ends = parameter_ends(prepared.space, prepared.served.defaults)
    drawn = [plan.baseline, *(end.high for end in ends)]
    sampled = next((params for params in drawn if is_random(params)), None)
    greedy = {"greedy": plan.greedy or plan.baseline}
    return greedy if sampled is None else greedy | {"sampled": sampled}


def _notes(opened: OpenedStudy, plan: Plan) -> str:
    """What the study's owner should know when it starts or goes on."""
    set_aside = set_aside_sentence(stored_set_aside(opened), len(plan.rows.order))
    told = [plan.baseline_note, *stored_draws(opened).notes, set_aside]
    return " ".join(filter(None, told))


def _open(prepared: Prepared, options: StudyOptions) -> OpenedStudy:
    plan, sampler, pruner = prepared.plan, options["sampler"], options["pruner"]
    try:
        opened = open_study(
            options["storage"],
            given_name(options, prepared.default_name),
            direction=plan.rows.objectives.directions,
            fingerprint=_fingerprint(prepared, options),
            sampler=None if isinstance(sampler, str) else sampler,
            pruner=pruner if isinstance(pruner, optuna.pruners.BasePruner) else None,
        )
    except ChangedStudyError as problem:
        if told := _changed_data(problem, plan.task, options["storage"]):
            raise ChangedStudyError(problem.name, [*problem.changed, f"that is: {told}"]) from None
        raise
    _warn_of_own(sampler, pruner)
    return opened


def _changed_data(problem: ChangedStudyError, task: PreparedTask, storage: str | None) -> str:
    """Which rows are others than when the study was started, where its data are."""
    if not any(line.startswith("data.") for line in problem.changed):
        return ""
    with contextlib.closing(read_study(storage, problem.name)) as started:
        return changed_rows(started.records.items(), task)


def _fingerprint(prepared: Prepared, options: StudyOptions) -> dict[str, Any]:
    """Everything that the study's results depend on."""
    plan, served = prepared.plan, prepared.served
    is_single = plan.rows.objectives.is_single
    return {
        "algorithm": prepared.algorithm,
        "model": dict(served.description),
        "model_defaults": {n: v for n, v in readable(served.defaults).items() if n != "samples"},
        "data": dict(plan.task.description),
        "space": prepared.space.description,
        "baseline": plan.baseline.canonical,
        "sampler": _name_of(options["sampler"]),
        "pruner": _name_of(options["pruner"]) if is_single else "none",
        "holdout": plan.rule.kept,
        "seed": options["seed"],
        "replicates": options["replicates"],
        "holdout_replicates": options["holdout_replicates"],
        "margin": options["margin"],
        "trials_in_flight": options["trials_in_flight"],
        **(
            {"search_rows": options["search_rows"], "holdout_rows": options["holdout_rows"]}
            if plan.reserve_budget is not None
            else {}
        ),
        **({} if options["finalists"] == _FINALISTS_BEFORE else {"finalists": options["finalists"]}),
        **_samples(options["samples"]),
        **({} if options["folds"] is None else {"folds": options["folds"]}),
        **({"constraints": plan.rows.constraints.description} if plan.rows.constraints else {}),
        **({"try_first": tried} if (tried := [dict(c.values) for c in plan.try_first if not c.baseline]) else {}),
        **({"baselines": {n: p.canonical for n, p in plan.baselines.items()}} if plan.baselines else {}),
        **({} if options["verdict_against"] == "baseline" else {"verdict_against": options["verdict_against"]}),
        # Left out where the score is alone, so that studies from before there was a choice go on.
        **({} if is_single else {"objectives": plan.rows.objectives.description}),
    }


def _samples(given: int | Sequence[int]) -> dict[str, Any]:
    """How many samples of a row are drawn, as a fingerprint has it; nothing for one, as before there was a choice."""
    if isinstance(given, int):
        return {} if given == 1 else {"samples": given}
    return {"samples": list(given)}


def _trial_queue(
    prepared: Prepared, options: StudyOptions, opened: OpenedStudy, session: Session, total: int
) -> TrialQueue:
    return TrialQueue(
        opened=opened,
        session=session,
        rows=prepared.plan.rows,
        space=prepared.space,
        defaults=prepared.served.defaults,
        baseline=prepared.plan.baseline,
        greedy=prepared.plan.greedy,
        suggester=prepared.suggester,
        n_trials=total,
        in_flight=options["trials_in_flight"],
        max_tokens=options["max_tokens"],
        max_cost=options["max_cost"],
        try_first=prepared.plan.try_first,
        halves=None if prepared.plan.halves is None else HalfScores(opened, prepared.plan.halves),
    )


def _trial_run(
    prepared: Prepared,
    opened: OpenedStudy,
    baseline: BaselineRows,
    callback: events.Callback,
    job: TrialJob,
    claim: Claim,
) -> TrialRun:
    served, tag = prepared.served, ("search", job.number)
    before = served.tag_stats(tag)  # an engine may have served other studies
    return TrialRun(
        job,
        prepared.plan.rows_of(job.number),
        opened,
        claim,
        prepared.pruner,
        callback,
        stats=lambda: counters_since(before, served.tag_stats(tag)),
        noise=stored_draws(opened).variance,
        cost=served.backend.cost,
        baseline=baseline,
    )


def _winner_selector(
    prepared: Prepared, options: StudyOptions, opened: OpenedStudy, session: Session, callback: events.Callback
) -> WinnerSelector:
    set_aside, halves = stored_set_aside(opened), prepared.plan.halves
    return WinnerSelector(
        opened=opened,
        session=session,
        server=prepared.served.backend,
        rows=prepared.plan.rows.without(set_aside),
        holdout=prepared.plan.holdout,
        replicates=options["holdout_replicates"],
        reserve_budget=prepared.plan.reserve_budget,
        max_tokens=options["max_tokens"],
        finalists=options["finalists"],
        varies=stored_draws(opened).varies,
        margin=options["margin"],
        baselines=prepared.plan.baselines if options["verdict_against"] == "all" else {},
        seed=options["seed"],
        callback=callback,
        halves=None if halves is None else halves.without(set_aside),
    )


def _name_of(own: Any) -> str:
    return own if isinstance(own, str) else repr(own) if isinstance(own, PairedPruner) else type(own).__qualname__


def _warn_of_own(sampler: Any, pruner: Any) -> None:
    own = [
        f"{what}={type(given).__name__}"
        for what, given in (("sampler", sampler), ("pruner", pruner))
        if not isinstance(given, str | PairedPruner)
    ]
    if own:
        logger.warning(
            "%s is used as it is: a study that is interrupted goes on, but may come out differently", " and ".join(own)
        )


def _study_started(trial_queue: TrialQueue, baseline: str, split: str) -> events.StudyStarted:
    trials = trial_queue.trials()
    best = best_complete(trials, trial_queue.rows.direction)
    return events.StudyStarted(
        study_name=trial_queue.opened.name,
        n_trials=trial_queue.n_trials,
        finished_trials=sum(t.state.is_finished() for t in trials),
        rows=len(trial_queue.rows.order),
        storage=trial_queue.opened.url,
        metric=trial_queue.rows.task.metric.name,
        direction=trial_queue.rows.direction,
        best_number=None if best is None else best.number,
        best_value=None if best is None else score_of(best),
        baseline=baseline,
        split=split,
    )


def _warn_if_ended_early(trial_queue: TrialQueue, deadline: float | None) -> None:
    done = len(trial_queue.trials())
    if trial_queue.exhausted:
        reason = "the space holds no configuration that was not tried"
    elif trial_queue.is_spent():
        reason = f"{trial_queue.spent_budget()} leaves no room for another trial"
    elif done < trial_queue.n_trials and deadline is not None and time.monotonic() > deadline:
        reason = "the time is up"
    elif (untried := trial_queue.untried()) > 0:
        logger.warning(
            "n_trials=%d ends the study before the grid: %d of its configurations were not tried; the same call with "
            "n_trials=%d goes on with them",
            *(trial_queue.n_trials, untried, done + untried),
        )
        return
    else:
        return
    logger.warning("%s: the study ends after %d of %d trials", reason, done, trial_queue.n_trials)
