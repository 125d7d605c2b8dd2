"""What points of a space say before anything is decoded: what cannot be asked for, and what has no effect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.engine.sampling.param_specs import is_of_task
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.aggregates import AggregatedMetric
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine
from llmsearch_optuna.space.space import BRANCH, Space


def check_supported(
    space: Space, served: ResolvedEngine, *configurations: GenerationParams, reasoning: ReasoningSpan | None = None
) -> None:
    """Make sure that what decodes can apply what is going to be tried.

    Args:
        space: What is searched.
        served: What decodes.
        configurations: Tried in any case: the baseline.
        reasoning: Between which markers the model thinks.

    Raises:
        InputError: It cannot; names every such parameter, and who takes it.
    """
    points = [point for _, point in _points(space, served.defaults)]
    problems = {served.refusal(params.decoding, reasoning): None for params in [*configurations, *points]}
    told = [problem for problem in problems if problem is not None]
    if told:
        raise InputError(f"{served.name} cannot be searched like this: {'; '.join(told)}")


def check_samples(metric: Metric, space: Space, defaults: Mapping[str, Any], *configurations: GenerationParams) -> None:
    """Make sure that the metric can make one score of a row's samples.

    Args:
        metric: The study's.
        space: What is searched.
        defaults: The model's generation configuration.
        configurations: Tried in any case.

    Raises:
        InputError: It scores all rows at once, or takes more samples than are drawn.
    """
    for params in (*configurations, *(point for _, point in _points(space, defaults))):
        if (problem := sample_problem(metric, params)) is not None:
            raise InputError(problem)


def sample_problem(metric: Metric, params: GenerationParams) -> str | None:
    """Return why a metric cannot score the samples that parameters draw of a row; None where it can."""
    if params.samples > 1 and metric.per_row is False:
        return (
            f"samples={params.samples}: one score is made of a row's samples, and {metric.name} scores all rows at "
            "once; give a metric by row"
        )
    fewest = metric.fewest_samples if isinstance(metric, AggregatedMetric) else 1
    if is_random(params) and params.samples < fewest:
        return (
            f"{metric.name} takes at least {fewest} samples of a row, and samples={params.samples}; give "
            f"samples={fewest} or more, also as the least that is searched"
        )
    return None


def parameter_ends(space: Space, defaults: Mapping[str, Any]) -> list[ParameterEnds]:
    """Both ends of every searched parameter that changes which tokens are picked, the others in the middle.

    What of the task is chosen is the first that there is.
    """
    found: dict[str, ParameterEnds] = {}
    for branch in space.branches:
        middle = {
            name: searched.ends()[0] if is_of_task(name) else _middle(searched.ends())
            for name, searched in branch.searched.items()
        }
        decoding = {name for name in branch.searched if not is_of_task(name)}
        for name in sorted(decoding - set(_ENDS_OF_TEXTS) - set(found)):
            ends = branch.searched[name].ends()
            try:
                low, high = (
                    GenerationParams.of({**branch.fixed, **middle, name: end}, defaults) for end in (ends[0], ends[-1])
                )
            except InputError:  # a combination that is refused fails its own trial
                continue
            if low != high:
                found[name] = ParameterEnds(name, low, high)
    return list(found.values())


_ENDS_OF_TEXTS = ("max_new_tokens", "min_new_tokens", "samples", "stop", "stop_strings", "stop_token_sequences")
"""Searched parameters that need not change the beginning of any text."""


def _middle(ends: Sequence[Any]) -> Any:
    if len(ends) == 2 and all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return (ends[0] + ends[1]) // 2 if isinstance(ends[0], int) else (ends[0] + ends[1]) / 2
    return ends[len(ends) // 2]


POINTS = 32
"""Points that are drawn for each branch."""


def inert_by_branch(space: Space, defaults: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The parameters that have no effect at any point that was drawn, by branch (``""`` where there is only one).

    >>> space = Space.of([{"max_new_tokens": 9, "temperature": 0.5}, {"max_new_tokens": 9, "do_sample": True}])
    >>> inert_by_branch(space, {})
    {'default': ('temperature',), 'sampling': ()}

    Args:
        space: What is searched.
        defaults: The model's generation configuration.
    """
    inert: dict[str, set[str]] = defaultdict(set)
    useful: dict[str, set[str]] = defaultdict(set)
    for branch, params in _points(space, defaults):
        inert[branch].update(params.inert)
        useful[branch].update(params)
    return {branch: tuple(sorted(inert[branch] - useful[branch])) for branch in sorted(inert)}


def _points(space: Space, defaults: Mapping[str, Any]) -> Iterator[tuple[str, GenerationParams]]:
    """Points of every branch, each with the branch's name; the same ones every time."""
    rng = np.random.default_rng(0)
    for _ in range(POINTS * max(1, len(space.branches))):
        try:
            point = space.at_random(rng)
            params = GenerationParams.of(point.values, defaults)
        except InputError:  # a combination that is refused fails its own trial
            continue
        yield str(point.params.get(BRANCH, "")), params


def inert_warning(by_place: Mapping[str, Iterable[str]]) -> str | None:
    """The warning that names what has no effect, by place; None where everything has one."""
    listed = {place: ", ".join(names) for place, names in by_place.items()}
    told = [f"{names} ({place})" if place else names for place, names in listed.items() if names]
    return f"without effect beside the other parameters, and left out: {'; '.join(told)}" if told else None
