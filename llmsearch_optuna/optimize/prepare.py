"""From the arguments of a search to a study that can begin: checked, its model loaded, planned.

Nothing is stored or searched here; a forecast begins like a search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from llmsearch_optuna.declaration import part
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, short
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
from llmsearch_optuna.options import ForecastOptions, TaskOptions
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.storage.study import stored_fingerprint
from llmsearch_optuna.task.prepared_task import PreparedTask
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
        return _default_name(self.plan.task, self.served)

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
    algorithm_of: Callable[[str], int] = lambda _: ALGORITHM,
    task_of: Callable[[str], Mapping[str, Any] | None] = lambda _: None,
) -> Prepared:
    """Check the arguments of `search`, load the model, and plan.

    Args:
        model: See `search`.
        dataset: See `search`.
        space: See `search`.
        tokenizer: See `search`.
        options: Of `search` or `forecast`, those with defaults too.
        algorithm_of: The number of the rules by which a study goes, from its default name; see `ALGORITHM`.
        task_of: What a study that was started says of its task, from its default name; see `stored_task`.

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
    refuse_shared_engine(task.metric, served.backend)
    if not isinstance(samples := options["samples"], int):
        checked = checked.with_samples(samples, served.defaults)
    served = served.drawing(samples)
    ready = task.prepare(served.tokenizer, takes_messages=served.model.takes_messages, tokens=served.prompt_tokens)
    served.check_logprobs(ready.metric)
    ready = ready.as_started(task_of(_default_name(ready, served)), served.tokenizer)
    algorithm = algorithm_of(_default_name(ready, served))
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


def stored_algorithm(storage: str | None, study_name: str) -> int:
    """Return by which rules the study of this name was started; those of today where there is none yet.

    Args:
        storage: See `search`.
        study_name: The study's name.
    """
    found = stored_fingerprint(storage, study_name)
    return ALGORITHM if found is None else min(ALGORITHM, int(found.get("algorithm", ALGORITHM)))


def stored_task(storage: str | None, study_name: str) -> Mapping[str, Any] | None:
    """Return what the study of this name says of its task; None where there is no such study yet.

    Args:
        storage: See `search`.
        study_name: The study's name.
    """
    found = stored_fingerprint(storage, study_name)
    return None if found is None else dict(found.get("data", {}))


def _default_name(task: PreparedTask, served: ResolvedEngine) -> str:
    return f"{task.name}-{served.name}"


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
        if pruner in ("paired", "none"):
            return None
        raise InputError(f"pruner={pruner!r}: a study with several objectives prunes nothing; leave pruner= out")
    return make_pruner(pruner)
