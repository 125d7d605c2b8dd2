"""From the arguments of a search to a study that can begin: checked, its model loaded, planned.

Nothing is stored or searched here; a forecast begins like a search.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from llmsearch_optuna.declaration import part
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, is_one_of, short
from llmsearch_optuna.metrics.postprocess import postprocess_of
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.evaluation import requests_for
from llmsearch_optuna.optimize.judged_study import refuse_shared_engine
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.plan import Plan, make_plan
from llmsearch_optuna.optimize.pruner import PairedPruner, make_pruner
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine, resolve_engine
from llmsearch_optuna.optimize.samplers import (
    GridSuggester,
    Suggester,
    make_suggester,
)
from llmsearch_optuna.optimize.space_points import check_samples, check_supported
from llmsearch_optuna.options import ForecastOptions, StorageOptions, TaskOptions
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.storage.study import StoredStudy
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.rendering import RenderedPrompts
from llmsearch_optuna.task.task import Task

ALGORITHM = 4
"""Counts up when the same arguments give other trials. A study goes on by the number that it was started with.

1: the space's fixed values were part of the baseline, and the pruner did not know of rows that the incumbent fails on.
2: all rows that were not held out were searched, however many.
3: rows were held out, however few, where the user did not ask for halves that judge each other.
"""

DEFAULT_TRIALS = 40

Pruner = PairedPruner | optuna.pruners.BasePruner | None


@dataclass(frozen=True)
class Prepared:
    """A study before it begins.

    Attributes:
        plan: Which rows, in which order, and the first two trials.
        served: The model, ready to decode.
        space: Where configurations come from.
        suggester: Chooses among them; None where the user gave a sampler.
        pruner: Stops hopeless trials; None stops none.
        algorithm: Which rules the study goes by; see `ALGORITHM`.
    """

    plan: Plan
    served: ResolvedEngine
    space: Space
    suggester: Suggester | None
    pruner: Pruner
    algorithm: int

    @property
    def default_name(self) -> str:
        """What the study is called where the user gives it no name."""
        return _default_name(self.plan.task.name, self.served)

    def total_trials(self, n_trials: int | None) -> int:
        """The study's total: what is asked for, else a whole grid, else 40."""
        if n_trials is not None:
            return n_trials
        if not isinstance(self.suggester, GridSuggester):
            return DEFAULT_TRIALS
        first = {p.fingerprint for p in (self.plan.baseline, self.plan.greedy, *self.plan.try_first) if p is not None}
        return len(first) + self.suggester.untried(first) * (1 if self.plan.halves is None else 2)


def prepare(
    model: Any,
    dataset: Any,
    space: Any,
    tokenizer: Any,
    options: ForecastOptions,
    *,
    stored_as: Callable[[str], StoredStudy | None] = lambda _: None,
) -> Prepared:
    """Check the arguments of `search`, load the model, and plan.

    Args:
        model: See `search`.
        dataset: See `search`.
        space: See `search`.
        tokenizer: See `search`.
        options: Of `search` or `forecast`, those with defaults too.
        stored_as: What a study that was started says of itself, from its default name.

    Raises:
        InputError: An argument cannot be used; says which and why.
    """
    pruner = _pruner(options["pruner"], options["objectives"])
    _check_sampler(options["sampler"])
    checked = Space.of(space)
    # Read first, so that a mistyped path is said at once, not after minutes of loading.
    task = Task.of(dataset, **part(TaskOptions, options)).read()
    checked = checked.with_choices(task.choices)
    constraints = Constraints.of(options["constraints"], postprocess=postprocess_of(task.postprocess))
    wanted = Objectives.of(
        options["objectives"],
        task.direction or "maximize",
        metric=task.metric_name,
        postprocess=postprocess_of(task.postprocess),
    )
    served = resolve_engine(model, tokenizer, options).with_defaults(task.generation)
    judging = (task.metric, task.scorer, options["constraints"], options["objectives"])
    refuse_shared_engine(served.backend, *judging)
    if not isinstance(samples := options["samples"], int):
        checked = checked.with_samples(samples, served.defaults)
    served = served.drawing(samples)
    stored = stored_as(_default_name(task.study_part, served))
    with _without_garbage_collection():
        ready = task.prepare(
            served.tokenizer,
            takes_messages=served.model.takes_messages,
            tokens=served.prompt_tokens,
            stored=None if stored is None else _rendered(stored),
        )
    served.check_logprobs(ready.metric)
    ready = ready.as_started(None if stored is None else _data_of(stored), served.tokenizer)
    algorithm = algorithm_of(stored)
    if isinstance(pruner, PairedPruner) and algorithm < 2:
        pruner = replace(pruner, knows_failing_rows=False)
    plan = make_plan(
        ready, served, checked, pruner, options, algorithm, wanted.checked(ready), constraints.checked(ready)
    )
    check_supported(checked, served, plan.baseline, reasoning=ready.reasoning)
    named = [c.generation for c in plan.try_first if c.generation is not None]
    check_samples(ready.metric, checked, served.defaults, plan.baseline, *named)
    _expect(served, plan)
    suggester, sampler = None, options["sampler"]
    if isinstance(sampler, str):
        suggester = make_suggester(
            sampler,
            checked,
            seed=options["seed"],
            direction=plan.rows.objectives.directions,
            defaults=served.defaults,
        )
    return Prepared(plan, served, checked, suggester, pruner, algorithm)


def _expect(served: ResolvedEngine, plan: Plan) -> None:
    """Tell the engine what all rows begin with, under every way to ask."""
    task = plan.task
    for labels in task.choices.combinations()[:MOST_WAYS_EXPECTED]:
        params = GenerationParams.of({**plan.baseline.one_sample.canonical, **labels})
        order = expected_rows(task.under(params))
        served.expect(requests_for(task, params, ("search", 0), order=order, replicates=[0]))


MOST_WAYS_EXPECTED = 16
"""Ways to ask whose common beginnings are computed once; each stays in the memory as long as the engine."""

MOST_EXPECTED = 2048
"""Rows that say what all prompts begin with; all where there are no more."""


def expected_rows(task: PreparedTask) -> Sequence[int]:
    """Return the rows whose prompts are tokenized before the first trial, so that what all begin with is known.

    The first and the last prompt in alphabetical order are among them: whatever these share, all share.
    """
    if len(task) <= MOST_EXPECTED:
        return range(len(task))
    by_text = task.prompts.__getitem__
    ends = (min(range(len(task)), key=by_text), max(range(len(task)), key=by_text))
    step = -(-len(task) // (MOST_EXPECTED - len(ends)))
    return sorted({*range(0, len(task), step), *ends})


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Hundreds of thousands of texts come and stay, and would be looked through again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def given_name(options: StorageOptions, default: str) -> str:
    """Return what a study is called: by the user, else by its data and its model."""
    return default if options["study_name"] is None else options["study_name"]


def algorithm_of(stored: StoredStudy | None) -> int:
    """Return by which rules a study was started; those of today where there is none yet."""
    return ALGORITHM if stored is None else min(ALGORITHM, int(stored.fingerprint.get("algorithm", ALGORITHM)))


def _data_of(stored: StoredStudy) -> Mapping[str, Any]:
    return dict(stored.fingerprint.get("data", {}))


def _rendered(stored: StoredStudy) -> RenderedPrompts:
    content = _data_of(stored).get("prompts", "")
    return RenderedPrompts(str(stored.settings.get("rendering", "")), stored.prompts, str(content))


def _default_name(task_name: str, served: ResolvedEngine) -> str:
    return f"{task_name}-{served.name}"


def _check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, str | optuna.samplers.BaseSampler):
        raise InputError(f"sampler={short(sampler)} must be a name, such as 'tpe', or a sampler of Optuna")
    if isinstance(sampler, optuna.samplers.BruteForceSampler | optuna.samplers.GridSampler):
        raise InputError(
            f"sampler={type(sampler).__name__} ends a study from within `study.optimize`, which is not called here; "
            "sampler='grid' tries every combination once"
        )


def _pruner(pruner: Any, objectives: Any) -> Pruner:
    if not isinstance(objectives, str | Sequence):
        raise InputError(f"objectives={short(objectives)} must be 'score', or a list that begins with it")
    if not isinstance(objectives, str) and len(tuple(objectives)) > 1:
        if is_one_of(pruner, "paired", "none"):
            return None
        raise InputError(f"pruner={short(pruner)}: a study with several objectives prunes nothing; leave pruner= out")
    return make_pruner(pruner)
