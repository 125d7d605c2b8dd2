"""Which parameters of a space can never have an effect, so that one warning can name them before a study begins.

Points are drawn and asked what of them is inert; which parameters those are is known to `GenerationParams` alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.space import BRANCH, Space

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
    rng = np.random.default_rng(0)
    inert: dict[str, set[str]] = defaultdict(set)
    useful: dict[str, set[str]] = defaultdict(set)
    for _ in range(POINTS * max(1, len(space.branches))):
        try:
            point = space.at_random(rng)
            params = GenerationParams.of(point.values, defaults)
        except InputError:  # a combination that is refused fails its own trial
            continue
        branch = str(point.params.get(BRANCH, ""))
        inert[branch].update(params.inert)
        useful[branch].update(params)
    return {branch: tuple(sorted(inert[branch] - useful[branch])) for branch in sorted(inert)}


def inert_warning(by_place: Mapping[str, Iterable[str]]) -> str | None:
    """The warning that names what has no effect, by place; None where everything has one."""
    listed = {place: ", ".join(names) for place, names in by_place.items()}
    told = [f"{names} ({place})" if place else names for place, names in listed.items() if names]
    return f"without effect beside the other parameters, and left out: {'; '.join(told)}" if told else None
