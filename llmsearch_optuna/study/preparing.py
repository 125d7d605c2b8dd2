"""From a user's arguments to a study that could begin: the task, the model, the plan, and who suggests.

Nothing is stored and nothing is decoded here, so a forecast prepares as a search does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.objectives import Objectives
from llmsearch_optuna.pruning import PairedPruner
from llmsearch_optuna.rows import requests_for
from llmsearch_optuna.samplers import GridSuggester, Suggester, make_suggester
from llmsearch_optuna.space import Space
from llmsearch_optuna.study.planning import Plan, make_plan
from llmsearch_optuna.study.serving import Served, serve
from llmsearch_optuna.task import Task

DEFAULT_TRIALS = 40

Judge = PairedPruner | optuna.pruners.BasePruner | None


@dataclass(frozen=True)
class Prepared:
    """A study before it begins.

    Attributes:
        plan: Which rows, in which order, and the first two trials.
        served: The model, ready to decode.
        space: Where configurations come from.
        suggester: Chooses among them; None where the user gave a sampler.
        judge: Stops hopeless trials; None stops none.
    """

    plan: Plan
    served: Served
    space: Space
    suggester: Suggester | None
    judge: Judge

    def total_trials(self, n_trials: int | None) -> int:
        """The study's total: what is asked for, else a whole grid, else 40."""
        if n_trials is not None:
            return n_trials
        if not isinstance(self.suggester, GridSuggester):
            return DEFAULT_TRIALS
        first = {p.fingerprint for p in (self.plan.baseline, self.plan.greedy) if p is not None}
        return len(first) + self.suggester.untried(first)


def prepare(
    model: Any,
    dataset: Any,
    space: Any,
    tokenizer: Any,
    *,
    described: Mapping[str, Any],
    engine: Mapping[str, Any],
    loading: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
    sampler: Any,
    pruner: Any,
    holdout: float,
    seed: int,
    replicates: int,
    folds: int | None,
    objectives: Sequence[str],
) -> Prepared:
    """Check the arguments of `search`, load the model, and plan.

    Args:
        model: See `search`, as the arguments that are not named here.
        dataset: See `search`.
        space: See `search`.
        tokenizer: See `search`.
        described: What describes the task (see `Task.of`).
        engine: How its engine is made (see `serve`).
        loading: How the model is loaded (see `serve`).
        baseline: See `search`.
        sampler: See `search`.
        pruner: See `search`.
        holdout: See `search`.
        seed: See `search`.
        replicates: See `search`.
        folds: See `search`.
        objectives: See `search`.

    Raises:
        InputError: An argument cannot be used; says which and why.
    """
    judge = _judge(pruner, objectives)
    checked = Space.of(space)
    task = Task.of(dataset, **described).read()  # a mistyped path is said at once, not after minutes of loading
    served = serve(model, tokenizer, engine=engine, loading=loading)
    ready = task.prepare(served.tokenizer)
    plan = make_plan(ready, served, checked, baseline, holdout, seed, replicates, folds, judge, objectives)
    served.expect(requests_for(plan.rows, plan.baseline, ("search", 0), order=range(len(ready)), replicates=[0]))
    suggester = None
    if isinstance(sampler, str):
        suggester = make_suggester(
            sampler,  # type: ignore[arg-type]  # an unknown name is refused there
            checked,
            seed=seed,
            direction=plan.rows.objectives.directions,
            defaults=served.defaults,
        )
    return Prepared(plan, served, checked, suggester, judge)


def check_numbers(**numbers: int | None) -> None:
    """Raise InputError unless all that are given are whole numbers from 1 on."""
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r} must be a whole number from 1 on")


def _judge(pruner: Any, objectives: Sequence[str]) -> Judge:
    if not Objectives.of(objectives, "maximize").is_single:
        if pruner in ("paired", "none"):
            return None
        raise InputError(f"pruner={pruner!r}: a study with several objectives prunes nothing; leave pruner= out")
    if isinstance(pruner, PairedPruner | optuna.pruners.BasePruner):
        return pruner
    if pruner == "paired":
        return PairedPruner()
    if pruner == "none":
        return None
    raise InputError(f"pruner={pruner!r} is unknown; give 'paired', 'none' or an Optuna pruner")
