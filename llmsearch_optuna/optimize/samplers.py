"""Which configuration trial n tries: a function of the seed, of n, and of the trials that n may see.

Every suggestion is made on an in-memory study that holds exactly that view, by a sampler seeded for n alone, so a
study that was killed goes on as if nothing had happened. A configuration that is known already is drawn again.
Nothing here decodes, stores or reads a clock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.engine.sampling.param_specs import is_of_task
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.optimize.seen_trials import BEFORE_ALL, SeenTrials
from llmsearch_optuna.space.space import Space, Suggestion
from llmsearch_optuna.storage.optuna_logging import quiet_optuna
from llmsearch_optuna.types import Direction

logger = logging.getLogger("llmsearch_optuna.optimize.samplers")

STARTUP_TRIALS = 10
"""So many finished trials are wanted before TPE models anything; until then it draws at random."""

TPE_REDRAWS = 4
RANDOM_REDRAWS = 200
MOST_LISTED = 100_000
"""Points among which what is left is looked for; where so many draws out of more are known, few decode differently."""

SamplerName = Literal["tpe", "random", "grid"]


@dataclass(frozen=True)
class Candidate:
    """A configuration to try, and how Optuna stores it.

    Attributes:
        params: What Optuna stores, by Optuna's names.
        distributions: The distributions of these parameters.
        values: What was asked for, searched and fixed values together.
        generation: The checked parameters; None where they were refused.
        refusal: Why they were refused.
        baseline: What the baseline is called that this is; empty for any other candidate.
    """

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: Mapping[str, Any]
    generation: GenerationParams | None
    refusal: str | None = None
    baseline: str = ""

    @property
    def fingerprint(self) -> str:
        """Equal for configurations that decode the same."""
        if self.generation is not None:
            return self.generation.fingerprint
        text = json.dumps(dict(self.values), sort_keys=True, default=str)
        return f"refused {hashlib.sha256(text.encode()).hexdigest()}"


class Suggester(Protocol):
    """Suggests one configuration a trial."""

    def suggest(self, number: int, seen: Sequence[FrozenTrial], known: Collection[str]) -> Candidate | None:
        """Return a configuration whose fingerprint is not known, or None when there is none left.

        Args:
            number: The number of the trial that will try it.
            seen: What this trial may see (see `visible`).
            known: Fingerprints of all trials before it.
        """
        ...


def make_suggester(
    sampler: SamplerName,
    space: Space,
    *,
    seed: int,
    direction: Direction | Sequence[Direction],
    defaults: Mapping[str, Any],
) -> Suggester:
    """The suggester of this name.

    Args:
        sampler: ``"tpe"``, ``"random"`` or ``"grid"``.
        space: Where configurations come from.
        seed: The study's seed.
        direction: ``"maximize"`` or ``"minimize"``; one a value where trials have several.
        defaults: The model's generation configuration, laid under every configuration.

    Raises:
        InputError: No such sampler, or a grid over a space without end.
    """
    make = CandidateMaker(defaults)
    if sampler == "tpe":
        return TpeSuggester(space, make, seed=seed, direction=direction)
    if sampler == "random":
        return RandomSuggester(space, make, seed=seed)
    if sampler == "grid":
        return GridSuggester(space, make, seed=seed)
    raise InputError(f"sampler={short(sampler)} is unknown; give 'tpe', 'random', 'grid' or an Optuna sampler")


def visible(
    trials: Sequence[FrozenTrial], number: int, in_flight: int, known: dict[int, FrozenTrial] | None = None
) -> list[FrozenTrial]:
    """What trial ``number`` may see: trials up to number - in_flight as they ended, later ones as running.

    The later ones may have ended by now or not; that depends on time, so only their parameters are shown.

    Args:
        trials: All trials of the study.
        number: The trial that is to see them.
        in_flight: How many trials may be under way at once.
        known: Those that were shown as they ended before, by number; new ones are added. Such a trial never changes.
    """
    settled = max(0, number - in_flight + 1)
    shown = {} if known is None else known
    for place in range(settled):
        if place not in shown:
            shown[place] = _placed(_as_settled(trials[place]), place)
    running = [_placed(_as_running(trials[place]), place) for place in range(settled, min(number, len(trials)))]
    return [shown[place] for place in range(settled)] + running


class CandidateMaker:
    """Turns points of a space into candidates.

    Args:
        defaults: The model's generation configuration.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = dict(defaults)

    def of(self, point: Suggestion) -> Candidate:
        """The candidate of one point."""
        params, distributions, values = point
        try:
            generation = GenerationParams.of(values, self._defaults)
        except InputError as refusal:
            return Candidate(params, distributions, values, None, str(refusal))
        return Candidate(params, distributions, values, generation)


class TpeSuggester:
    """TPE on the visible trials; a known configuration is drawn again a few times, then at random."""

    def __init__(
        self, space: Space, make: CandidateMaker, *, seed: int, direction: Direction | Sequence[Direction]
    ) -> None:
        self._space = space
        self._make = make
        self._seed = seed
        self._directions = [direction] if isinstance(direction, str) else list(direction)
        self._random = RandomSuggester(space, make, seed=seed)

    def suggest(self, number: int, seen: Sequence[FrozenTrial], known: Collection[str]) -> Candidate | None:
        for candidate in self._draws(number, seen):
            if candidate.fingerprint not in known:
                return candidate
        return self._random.suggest(number, seen, known)

    def _draws(self, number: int, seen: Sequence[FrozenTrial]) -> Iterator[Candidate]:
        with quiet_optuna():
            sampler = _tpe(seed_of(self._seed, number, "tpe"))
            study = optuna.create_study(storage=SeenTrials(seen), directions=self._directions, sampler=sampler)
            for _ in range(1 + TPE_REDRAWS):
                # A draw that is known stays in this study as running: the next draw keeps away from it.
                trial = study.ask()
                try:
                    values = self._space.suggest(trial)
                except InputError as refusal:
                    yield _refused(refusal)
                    continue
                frozen = study.get_trials(deepcopy=False)[-1]
                yield self._make.of(Suggestion(dict(frozen.params), dict(frozen.distributions), values))


class RandomSuggester:
    """Uniform draws; where the space has an end, what is left of it is listed once draws repeat themselves."""

    def __init__(self, space: Space, make: CandidateMaker, *, seed: int) -> None:
        self._space = space
        self._make = make
        self._seed = seed

    def suggest(self, number: int, seen: Sequence[FrozenTrial], known: Collection[str]) -> Candidate | None:
        rng = np.random.default_rng(seed_of(self._seed, number, "random"))
        for _ in range(RANDOM_REDRAWS):
            try:
                candidate = self._make.of(self._space.at_random(rng))
            except InputError as refusal:
                candidate = _refused(refusal)
            if candidate.fingerprint not in known:
                return candidate
        size = self._space.size() if self._space.is_exhaustible else None
        if size is None or size > MOST_LISTED:
            return None
        return next((c for c in map(self._make.of, self._space.combinations()) if c.fingerprint not in known), None)


LARGE_GRID = 20_000
"""Points that are all made before the first trial, to be sorted; of more that would take seconds."""


class GridSuggester:
    """Every point of the space once, in an order drawn from the seed; points that decode the same count once.

    Of a large grid each point is made when it is its turn.
    """

    def __init__(self, space: Space, make: CandidateMaker, *, seed: int) -> None:
        size = space.size()
        if size is None:
            next(space.combinations())
        self._size = size or 0
        self._candidates: list[Candidate] = []
        self._others: Iterator[Candidate] = iter(())
        if self._size > LARGE_GRID:
            self._others = (make.of(space.point(shuffled(place, self._size, seed))) for place in range(self._size))
            logger.warning(
                "the grid has %s points; they are made one by one, in an order drawn from the seed", f"{size:,}"
            )
        else:
            self._candidates = sorted(
                map(make.of, space.combinations()),
                key=lambda c: hashlib.sha256(f"{seed} {c.fingerprint}".encode()).digest(),
            )

    def untried(self, known: Collection[str]) -> int:
        """How many configurations of the grid are not among the known ones; of a large grid, how many at most."""
        if self._size > LARGE_GRID:
            made = {candidate.fingerprint for candidate in self._candidates}
            return self._size - len(self._candidates) + len(made - set(known))
        return len({candidate.fingerprint for candidate in self._candidates} - set(known))

    def suggest(self, number: int, seen: Sequence[FrozenTrial], known: Collection[str]) -> Candidate | None:
        return next((c for c in self._in_order() if c.fingerprint not in known), None)

    def _in_order(self) -> Iterator[Candidate]:
        yield from self._candidates
        for candidate in self._others:
            self._candidates.append(candidate)
            yield candidate


def shuffled(place: int, size: int, seed: int) -> int:
    """Return where a place goes in a permutation of so many places that is drawn from the seed.

    A Feistel network permutes the next power of four; places that leave the range go through it again.

    >>> sorted(shuffled(place, 7, 0) for place in range(7))
    [0, 1, 2, 3, 4, 5, 6]
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            drawn = hashlib.sha256(f"{seed} {turn} {right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(drawn[:16], "big") & mask)
        place = left << half | right
        if place < size:
            return place


def seed_of(seed: int, number: int, purpose: str) -> int:
    """A 32-bit seed for one purpose of one trial."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {purpose}".encode()).digest()[:4], "big")


def same_point(space: Space, generation: GenerationParams, make: CandidateMaker) -> Candidate | None:
    """The branch that searches no generation parameter and decodes as these do: lets TPE learn from the first trials.

    What of the task is chosen is no generation parameter.
    """
    for branch in space.branches:
        chosen = {name: generation[name] for name in branch.searched if is_of_task(name) and name in generation}
        is_searched = len(chosen) < len(branch.searched)
        point = None if is_searched else space.encode({**branch.fixed, **chosen}, branch.label)
        if point is not None and (candidate := make.of(point)).generation == generation:
            return candidate
    return None


def candidate_of(
    space: Space, values: Mapping[str, Any], generation: GenerationParams, make: CandidateMaker
) -> Candidate:
    """What decodes with these parameters: a point of the space where it has one, so that TPE learns from it.

    Args:
        space: What is searched.
        values: The parameters as they were given.
        generation: The same, checked.
        make: Of the model.
    """
    for branch in space.branches:
        if not all(name in values for name in branch.searched):
            continue
        point = space.encode({**branch.fixed, **{name: values[name] for name in branch.searched}}, branch.label)
        if point is not None and (candidate := make.of(point)).generation == generation:
            return candidate
    return Candidate({}, {}, generation.canonical, generation)


def _refused(refusal: InputError) -> Candidate:
    """What a function that is a space gives when it returns something that cannot be decoded with."""
    return Candidate({}, {}, {}, None, str(refusal))


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Without `group` one trial that lacks a parameter (the baseline, a branch) switches multivariate TPE off.
        return optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def _placed(trial: FrozenTrial, place: int) -> FrozenTrial:
    trial.number = place - BEFORE_ALL
    return trial


def _as_settled(trial: FrozenTrial) -> FrozenTrial:
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or trial.values is None:
        return create_trial(state=TrialState.FAIL, params=dict(trial.params), distributions=dict(trial.distributions))
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=dict(trial.params),
        distributions=dict(trial.distributions),
        intermediate_values=dict(trial.intermediate_values),
        constraints=dict(trial.constraints) or None,
    )


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING, params=dict(trial.params), distributions=dict(trial.distributions))
