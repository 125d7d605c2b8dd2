"""The whole story of a search: prepare, open the study, run its trials, choose the winner, judge it on the holdout."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import optuna

from llmsearch_optuna import progress as events
from llmsearch_optuna.dashboard import StudyPageCallback, TrialNoteCallback
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.callbacks import BatchSizeCallback, ForecastCallback, PowerCallback, ThroughputCallback
from llmsearch_optuna.optimize.loop import run_trials
from llmsearch_optuna.optimize.plan import Plan, Prepared, check_numbers, prepare, readable
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.request_queue import Feeder
from llmsearch_optuna.optimize.score import score
from llmsearch_optuna.optimize.selection import Decider
from llmsearch_optuna.optimize.signals import StudyInterrupted, how_to_go_on, interruptible
from llmsearch_optuna.optimize.throughput import MeteredServer, since, tallied
from llmsearch_optuna.optimize.trial import TrialJob, TrialRun
from llmsearch_optuna.optimize.trial_queue import Schedule
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.leases import Claim, Session
from llmsearch_optuna.storage.study import OpenedStudy, open_study
from llmsearch_optuna.storage.trials import best_complete, score_of
from llmsearch_optuna.types import Direction

__all__ = ["StudyInterrupted", "score", "search"]

logger = logging.getLogger("llmsearch_optuna.optimize.run")

ALGORITHM = 1
"""Counts up whenever the same study would come out differently; part of the fingerprint."""


def search(
    model: Any,
    dataset: Any,
    space: Any,
    tokenizer: Any = None,
    *,
    prompt: Any = None,
    reference: Any = None,
    metric: Any = None,
    direction: Direction | None = None,
    objectives: Sequence[str] = ("score",),
    baseline: Mapping[str, Any] | None = None,
    n_trials: int | None = None,
    timeout: float | None = None,
    max_tokens: int | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    sampler: Literal["tpe", "random", "grid"] | optuna.samplers.BaseSampler = "tpe",
    pruner: Literal["paired", "none"] | PairedPruner | optuna.pruners.BasePruner = "paired",
    holdout: float = 0.3,
    folds: int | None = None,
    seed: int = 42,
    batch_size: int | Literal["auto"] = "auto",
    cache_budget: int | Literal["auto"] = "auto",
    trials_in_flight: int = 4,
    replicates: int = 1,
    holdout_replicates: int = 3,
    margin: float | None = None,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    chat_template: bool | Mapping[str, Any] | None = None,
    postprocess: Callable[[str], str] | None = None,
    max_prompt_tokens: float | None = None,
    tokenizer_encode_args: Mapping[str, Any] | None = None,
    tokenizer_decode_args: Mapping[str, Any] | None = None,
    device: str | None = None,
    device_map: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
    observer: events.Callback | None = None,
    callbacks: Sequence[events.Callback] = (),
) -> SearchResult:
    """Find the generation parameters with which the model scores best, and say whether they beat the baseline.

    A study that exists goes on where it stopped: rows that have been decoded are never decoded again, and the result
    is the one that an uninterrupted run would have had.

    Args:
        model: A Hugging Face model, a path or hub id of one, an Engine, or an object with
            ``generate(prompts, params)``.
        dataset: Rows, a path, a hub id, or a Task.
        space: A dict of generation parameters, a list of them (branches), a function of an Optuna trial, or a preset.
        tokenizer: Found from the model where it can be.
        prompt: A template, or a function of the row; see Task.
        reference: What the metric compares with; see Task.
        metric: A built-in name, a function, or an ``evaluate`` module; see Metric.of.
        direction: ``"maximize"`` (the default) or ``"minimize"``.
        objectives: ``("score",)``, or ``("score", "tokens")`` to search the front of score and generated tokens a
            row (see `SearchResult.front`); then nothing is pruned, and the verdict is about the best score.
        baseline: The parameters in use today; default: the model's generation configuration.
        n_trials: The study's total: a study that is resumed runs what is left. Default: 40, or the whole of a grid.
        timeout: Seconds after which no new trial is begun; those under way end, and the verdict follows.
        max_tokens: Generated tokens of all trials together, in all sessions: no trial is begun that would not fit if it
            took what those before it took on average. The first `trials_in_flight` begin in any case. The verdict
            comes on top: some finalists once more, and two trials on the holdout.
        storage: ``sqlite:///…`` or ``postgresql+psycopg://…``; default: ``sqlite:///studies/<study_name>.db``.
        study_name: Default: made from data and model.
        sampler: ``"tpe"``, ``"random"``, ``"grid"``, or an Optuna sampler (then resuming is not exact).
        pruner: ``"paired"``, ``"none"``, a PairedPruner, or an Optuna pruner (then resuming is not exact).
        holdout: The share of distinct prompts that no trial sees; the verdict is made on them.
        folds: Show the score of each of so many parts of the search rows in a trial's attributes, ``fold_scores``, and
            in `trials_dataframe`. Rows with the same prompt are in the same part; nothing is decided by them.
        seed: Of the split, the order of the rows, and all suggestions.
        batch_size: Most rows in one pass of the model.
        cache_budget: Bytes for what earlier trials computed.
        trials_in_flight: How many trials are decoded together, in all processes of the study.
        replicates: How often a row is decoded in a trial that samples.
        holdout_replicates: The same on the holdout and for the finalists.
        margin: A loss up to this is accepted: the verdict then answers "as good?" instead of "better?".
        split: Which split of a dataset that has several.
        subset: Which configuration of a hub dataset that has several.
        limit: Use only the first so many rows.
        system: A system message before every prompt.
        chat_template: Whether to wrap prompts in the tokenizer's chat template (it is by default).
        postprocess: Applied to every completion before it is scored.
        max_prompt_tokens: Cut longer prompts, to so many tokens or to this quantile of their lengths; see Task. By
            default nothing is cut, and prompts that do not fit into the model are an error.
        tokenizer_encode_args: What the tokenizer is called with; see Task.
        tokenizer_decode_args: What its ``decode`` is called with; see Engine.
        device: Where to load the model to.
        device_map: How to spread it over devices (needs accelerate).
        dtype: In which dtype to load it.
        revision: Which revision of it to load.
        adapter: A PEFT adapter to put on it: a folder or hub id.
        gguf_file: Which .gguf file of a hub repository to load.
        trust_remote_code: Run code that comes with the model.
        progress: Show the study's progress in the terminal.
        observer: A callback that takes the place of the terminal; its errors end the study.
        callbacks: Objects with a method ``on(event)`` that are told of the study's events, in this order (see
            `llmsearch_optuna.progress`). The first error of one is logged as a warning, and the study goes on;
            KeyboardInterrupt ends the study as Ctrl-C does.

    Raises:
        InputError: An argument cannot be used; says which and why.
        StudyError: The study cannot be opened, or was started with something else.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    check_numbers(n_trials=n_trials, trials_in_flight=trials_in_flight, replicates=replicates)
    check_numbers(holdout_replicates=holdout_replicates)
    _check_budgets(timeout=timeout, max_tokens=max_tokens)
    guarded = events.guard(callbacks)
    prepared = prepare(
        model,
        dataset,
        space,
        tokenizer,
        described={
            "prompt": prompt,
            "reference": reference,
            "metric": metric,
            "direction": direction,
            "postprocess": postprocess,
            "system": system,
            "chat_template": chat_template,
            "max_prompt_tokens": max_prompt_tokens,
            "tokenizer_encode_args": tokenizer_encode_args,
            "split": split,
            "subset": subset,
            "limit": limit,
        },
        engine={
            "batch_size": batch_size,
            "cache_budget": cache_budget,
            "tokenizer_decode_args": tokenizer_decode_args,
        },
        loading={
            "device": device,
            "device_map": device_map,
            "dtype": dtype,
            "revision": revision,
            "adapter": adapter,
            "gguf_file": gguf_file,
            "trust_remote_code": trust_remote_code,
        },
        baseline=baseline,
        sampler=sampler,
        pruner=pruner,
        holdout=holdout,
        seed=seed,
        replicates=replicates,
        folds=folds,
        objectives=objectives,
    )
    settings = StudySettings(
        storage=storage,
        study_name=study_name,
        n_trials=n_trials,
        timeout=timeout,
        max_tokens=max_tokens,
        sampler=sampler,
        pruner=pruner,
        holdout=holdout,
        folds=folds,
        seed=seed,
        trials_in_flight=trials_in_flight,
        replicates=replicates,
        holdout_replicates=holdout_replicates,
        margin=margin,
    )
    with _shown(observer, progress) as shown:
        return run_study(
            prepared,
            settings,
            callbacks=[shown, *guarded],
            study_callbacks=lambda opened, plan: [
                TrialNoteCallback(opened, plan.rows),
                StudyPageCallback(lambda: SearchResult.of(opened, task=plan.task)),
            ],
            result_of=lambda opened, plan: SearchResult.of(opened, task=plan.task),
        )


@contextlib.contextmanager
def _shown(observer: events.Callback | None, progress: bool) -> Iterator[events.Callback]:
    """The callback that shows the study: the user's, the terminal, or none."""
    if observer is not None:
        yield observer
    elif progress:
        with events.Terminal() as terminal:
            yield terminal
    else:
        yield events.Quiet()


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How a study is run; each attribute is the argument of `search` with this name."""

    storage: str | None
    study_name: str | None
    n_trials: int | None
    timeout: float | None
    max_tokens: int | None
    sampler: str | optuna.samplers.BaseSampler
    pruner: str | PairedPruner | optuna.pruners.BasePruner
    holdout: float
    folds: int | None
    seed: int
    trials_in_flight: int
    replicates: int
    holdout_replicates: int
    margin: float | None


class Summarized(Protocol):
    """A result that can be said in a sentence or two."""

    @property
    def summary(self) -> str:
        """One or two sentences for people."""
        ...


Result = TypeVar("Result", bound=Summarized)


def run_study(
    prepared: Prepared,
    settings: StudySettings,
    *,
    callbacks: Sequence[events.Callback],
    study_callbacks: Callable[[OpenedStudy, Plan], Sequence[events.Callback]],
    result_of: Callable[[OpenedStudy, Plan], Result],
) -> Result:
    """Open the study, run its trials, choose the winner, and compare it with the baseline on the holdout.

    Args:
        prepared: The study before it begins.
        settings: How it is run.
        callbacks: Are told of every event first, in this order.
        study_callbacks: Makes the callbacks that need the opened study; they come after those of every search.
        result_of: Makes the result of the study.

    Raises:
        StudyError: The study cannot be opened, or was started with something else.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    plan, served = prepared.plan, prepared.served
    total = prepared.total_trials(settings.n_trials)
    deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
    opened = _open(prepared, settings)
    with (
        contextlib.closing(opened),
        storage_errors(opened.address),
        interruptible(lambda: how_to_go_on(opened, total)),
        Session(opened.engine, opened.key) as session,
    ):
        plan.write(opened, served, n_trials=total, seed=settings.seed)
        schedule = _schedule(prepared, settings, opened, session, total)
        server = MeteredServer(served.backend, lambda: served.stats)
        told = events.CallbackList(
            [
                *callbacks,
                ThroughputCallback(server),
                BatchSizeCallback(opened.ledger, served),
                PowerCallback(opened, plan, settings.holdout_replicates),
                *study_callbacks(opened, plan),
                ForecastCallback(opened, prepared, server, total, settings.holdout_replicates),
            ]
        )
        told.on(_study_started(schedule))
        with tallied(opened.study, session.owner, lambda: served.stats):
            make_run = functools.partial(_trial_run, prepared, opened, told)
            run_trials(schedule, Feeder(server, served.capacity), make_run, told, deadline=deadline)
            _warn_if_ended_early(schedule, deadline)
            _decider(prepared, settings, opened, session, told).decide()
        result = result_of(opened, plan)
        told.on(events.StudyEnded(result_summary=result.summary))
    return result


def _open(prepared: Prepared, settings: StudySettings) -> OpenedStudy:
    plan, sampler, pruner = prepared.plan, settings.sampler, settings.pruner
    opened = open_study(
        settings.storage,
        settings.study_name or f"{plan.task.name}-{prepared.served.name}",
        direction=plan.rows.objectives.directions,
        fingerprint=_fingerprint(prepared, settings),
        sampler=None if isinstance(sampler, str) else sampler,
        pruner=pruner if isinstance(pruner, optuna.pruners.BasePruner) else None,
    )
    _warn_of_own(sampler, pruner)
    return opened


def _fingerprint(prepared: Prepared, settings: StudySettings) -> dict[str, Any]:
    """Everything that the study's results depend on."""
    plan, served = prepared.plan, prepared.served
    is_single = plan.rows.objectives.is_single
    return {
        "algorithm": ALGORITHM,
        "model": dict(served.description),
        "model_defaults": readable(served.defaults),
        "data": dict(plan.task.description),
        "space": prepared.space.description,
        "baseline": plan.baseline.canonical,
        "sampler": _name_of(settings.sampler),
        "pruner": _name_of(settings.pruner) if is_single else "none",
        "holdout": settings.holdout,
        "seed": settings.seed,
        "replicates": settings.replicates,
        "holdout_replicates": settings.holdout_replicates,
        "margin": settings.margin,
        "trials_in_flight": settings.trials_in_flight,
        **({} if settings.folds is None else {"folds": settings.folds}),
        # Left out where the score is alone, so that studies from before there was a choice go on.
        **({} if is_single else {"objectives": plan.rows.objectives.names}),
    }


def _schedule(
    prepared: Prepared, settings: StudySettings, opened: OpenedStudy, session: Session, total: int
) -> Schedule:
    return Schedule(
        opened=opened,
        session=session,
        rows=prepared.plan.rows,
        space=prepared.space,
        defaults=prepared.served.defaults,
        baseline=prepared.plan.baseline,
        greedy=prepared.plan.greedy,
        suggester=prepared.suggester,
        n_trials=total,
        in_flight=settings.trials_in_flight,
        max_tokens=settings.max_tokens,
    )


def _trial_run(
    prepared: Prepared, opened: OpenedStudy, callback: events.Callback, job: TrialJob, claim: Claim
) -> TrialRun:
    served, tag = prepared.served, ("search", job.number)
    before = served.tag_stats(tag)  # an engine may have served other studies
    return TrialRun(
        job,
        prepared.plan.rows,
        opened,
        claim,
        prepared.judge,
        callback,
        stats=lambda: since(before, served.tag_stats(tag)),
    )


def _decider(
    prepared: Prepared, settings: StudySettings, opened: OpenedStudy, session: Session, callback: events.Callback
) -> Decider:
    return Decider(
        opened=opened,
        session=session,
        server=prepared.served.backend,
        rows=prepared.plan.rows,
        holdout=prepared.plan.holdout,
        replicates=settings.holdout_replicates,
        margin=settings.margin,
        seed=settings.seed,
        callback=callback,
    )


def _check_budgets(*, timeout: float | None, max_tokens: int | None) -> None:
    if timeout is not None and not timeout >= 0:
        raise InputError(f"timeout={timeout!r} must be a number of seconds from 0 on")
    if max_tokens is not None:
        check_numbers(max_tokens=max_tokens)


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


def _study_started(schedule: Schedule) -> events.StudyStarted:
    trials = schedule.trials()
    best = best_complete(trials, schedule.rows.direction)
    return events.StudyStarted(
        study_name=schedule.opened.name,
        n_trials=schedule.n_trials,
        finished_trials=sum(t.state.is_finished() for t in trials),
        rows=len(schedule.rows.order),
        storage=schedule.opened.url,
        metric=schedule.rows.task.metric.name,
        direction=schedule.rows.direction,
        best_number=None if best is None else best.number,
        best_value=None if best is None else score_of(best),
    )


def _warn_if_ended_early(schedule: Schedule, deadline: float | None) -> None:
    done = len(schedule.trials())
    if schedule.exhausted:
        reason = "the space holds no configuration that was not tried"
    elif schedule.is_spent():
        reason = f"max_tokens={schedule.max_tokens} leaves no room for another trial"
    elif done < schedule.n_trials and deadline is not None and time.monotonic() > deadline:
        reason = "the time is up"
    elif (untried := schedule.untried()) > 0:
        logger.warning(
            "n_trials=%d ends the study before the grid: %d of its configurations were not tried; the same call with "
            "n_trials=%d goes on with them",
            *(schedule.n_trials, untried, done + untried),
        )
        return
    else:
        return
    logger.warning("%s: the study ends after %d of %d trials", reason, done, schedule.n_trials)
