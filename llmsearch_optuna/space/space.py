"""Which generation parameters are searched and which are fixed: a user's space as branches that Optuna can store.

A value that is an ``optuna.distributions`` object is searched, any other is fixed. Names and values are judged in
``decoding``; which configuration is tried next is decided elsewhere. Models and datasets must not enter.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FixedTrial

from llmsearch_optuna.engine.sampling.after_thinking import flattened
from llmsearch_optuna.engine.sampling.params import check_value
from llmsearch_optuna.errors import InputError, LlmsearchError, describe_error, short
from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable
from llmsearch_optuna.space.branch import Branch, make_branch
from llmsearch_optuna.space.distributions import (
    Choices,
    RandomTrial,
    count_of,
    draw,
    from_table,
    searched,
    suggest,
    values_of,
)
from llmsearch_optuna.task.choices import TaskChoices

BRANCH = "branch"
"""Optuna's name of the choice between branches; a space with one branch has no such parameter."""

COMPARABLE = frozenset(
    {
        "max_new_tokens",
        "stop",
        "stop_strings",
        "stop_token_sequences",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "generation_seed",
    }
)
"""What the baseline takes over from the space: without these two outputs cannot be compared, or not made at all."""

_PROBES = 32


class Suggestion(NamedTuple):
    """One point of a space.

    Attributes:
        params: What Optuna stores, by Optuna's names.
        distributions: The distributions of these parameters, by the same names.
        values: What is decoded: searched and fixed values by generation parameter names.
    """

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    values: dict[str, Any]


class Space(ABC):
    """What a search may choose from. Make one with :meth:`of`.

    >>> from optuna.distributions import FloatDistribution
    >>> space = Space.of({"max_new_tokens": 64, "do_sample": True, "temperature": FloatDistribution(0.2, 1.2)})
    >>> space.fixed
    {'max_new_tokens': 64, 'do_sample': True}
    """

    @staticmethod
    def of(space: object) -> Space:
        """Return the space that ``space`` describes.

        Args:
            space: A dict of generation parameters; a list of such dicts (branches, of which each trial picks one);
                a function of an Optuna trial that returns the parameters; or a space.

        Raises:
            InputError: An unknown name (the nearest is suggested), a fixed value or an end of a distribution that
                is not allowed, or a description that is none of these.
        """
        if isinstance(space, Space):
            return space
        if isinstance(space, Mapping):
            return BranchedSpace([space])
        if isinstance(space, Sequence) and not isinstance(space, str | bytes):
            return BranchedSpace(space)
        if callable(space):
            return FunctionSpace(space)
        raise InputError(
            f"space={short(space)} is no space: give a dict of generation parameters, a list of such dicts, "
            "a function of an Optuna trial, or a preset"
        )

    @staticmethod
    def from_param_grid(grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]]) -> Space:
        """Return the space of a scikit-learn parameter grid: a dict of lists, or a list of such dicts.

        Every list holds the values to try; a list of one value is a fixed value.
        """
        grids = [grid] if isinstance(grid, Mapping) else list(grid)
        return BranchedSpace([{name: _from_list(name, values) for name, values in one.items()} for one in grids])

    @staticmethod
    def from_tables(tables: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Space:
        """Return the space that a study file describes: a table, or a list of tables (branches).

        A value that is a table is searched: ``{low = 0.1, high = 1.2, log = true}`` or ``{choices = [...]}``; that of
        ``after_thinking`` holds parameters.
        """
        listed = [tables] if isinstance(tables, Mapping) else list(tables)
        return BranchedSpace([{n: _from_value(n, value) for n, value in flattened(one).items()} for one in listed])

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """The branches in the user's order; none for a function."""

    @property
    @abstractmethod
    def fixed(self) -> dict[str, Any]:
        """The fixed values that all branches share."""

    @property
    @abstractmethod
    def search_distributions(self) -> dict[str, BaseDistribution]:
        """All distributions by Optuna's names, the choice of the branch included; none for a function."""

    @property
    @abstractmethod
    def is_exhaustible(self) -> bool:
        """Whether the space has finitely many points, so that a grid can go through all."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The space as JSON has it: what counts in a study's fingerprint."""

    @abstractmethod
    def suggest(self, trial: Any) -> dict[str, Any]:
        """Let an Optuna trial choose, and return all values to decode with, searched and fixed.

        Any object with Optuna's ``suggest_float``, ``suggest_int`` and ``suggest_categorical`` will do.
        """

    @abstractmethod
    def at_random(self, rng: np.random.Generator) -> Suggestion:
        """Return a point drawn uniformly (branches evenly, logarithmic ranges on their logarithm)."""

    @abstractmethod
    def size(self) -> int | None:
        """Return the number of points, or None where there is no end of them.

        Points that decode the same (a temperature without sampling) count each.
        """

    @abstractmethod
    def combinations(self) -> Iterator[Suggestion]:
        """Yield every point once, the last name varying fastest, as scikit-learn's ``ParameterGrid`` does.

        Raises:
            InputError: The space has no end.
        """

    @abstractmethod
    def point(self, place: int) -> Suggestion:
        """Return the point at this place of `combinations`, without making those before it.

        Raises:
            InputError: The space has no end.
            IndexError: It has no such place.
        """

    @abstractmethod
    def encode(self, values: Mapping[str, Any], branch: str | None = None) -> Suggestion | None:
        """Return the point that decodes with exactly these values, or None where the space has no such point.

        Args:
            values: Generation parameters; all that the branch names, and no others.
            branch: Look only in the branch with this label.
        """

    @abstractmethod
    def with_choices(self, choices: TaskChoices) -> Space:
        """Return the space in which a task's choices are searched beside its own parameters, in every branch.

        A branch that says itself what is chosen, as a value or as fewer of them, is left as it is.

        Raises:
            InputError: The space names a choice that the task has not, or a value that it cannot have.
        """

    @abstractmethod
    def with_samples(self, numbers: Sequence[int], defaults: Mapping[str, Any]) -> Space:
        """Return the space in which the number of samples is searched wherever it samples and says nothing of them.

        Args:
            numbers: To choose from.
            defaults: The model's generation configuration.

        Raises:
            InputError: The space is a function, which has to say itself what it searches.
        """

    @abstractmethod
    def _most_new_tokens(self) -> int | None:
        """Return the largest max_new_tokens of the space, or None where some points have none."""

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values to decode with for the parameters that Optuna stored."""
        return self.suggest(FixedTrial(dict(params)))

    @property
    def comparable(self) -> dict[str, Any]:
        """The fixed values that the baseline has as well: how long, where to stop, which seed."""
        return {name: value for name, value in self.fixed.items() if name in COMPARABLE}

    def baseline_values(
        self,
        base: Mapping[str, Any],
        given: Mapping[str, Any] | None = None,
        *,
        taken_over: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the parameters of the baseline: what the user has.

        Args:
            base: The model's generation configuration.
            given: The user's own baseline, laid over it: what the user calls the baseline is the baseline.
            taken_over: What is laid between the two; by default the space's `comparable` values. Whatever else the
                space fixes is part of what is tested against the baseline.

        Raises:
            InputError: max_new_tokens is neither given nor searched.
        """
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"baseline={short(given)} must be a dict of generation parameters")
        given = {name: value for name, value in (given or {}).items() if value is not None}
        for name, value in given.items():
            check_value(name, value)
        values = {**base, **(self.comparable if taken_over is None else taken_over), **given}
        limit = self._most_new_tokens()
        if limit is None and values.get("max_new_tokens") is None:
            raise InputError(
                "max_new_tokens is neither given nor searched. Put it into the space, as a number or a distribution "
                "(in every branch): Hugging Face's own default of 20 new tokens would make any verdict trivial."
            )
        if limit is not None and "max_new_tokens" not in given:
            values["max_new_tokens"] = limit
        return values


class BranchedSpace(Space):
    """One dict or several: each is a branch with its own fixed and searched values.

    ``labels`` name the branches where their kinds of decoding would not tell them apart.
    """

    def __init__(self, branches: Sequence[object], labels: Sequence[str] | None = None) -> None:
        if not branches:
            raise InputError("the space is an empty list; give at least one dict of generation parameters")
        several = len(branches) > 1
        made = [make_branch(values, place if several else None) for place, values in enumerate(branches)]
        if labels is not None:
            made = [branch.relabelled(label) for branch, label in zip(made, labels, strict=True)]
        self._branches = _named(made)
        self._labels = CategoricalDistribution([branch.label for branch in self._branches])

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self._branches

    @property
    def fixed(self) -> dict[str, Any]:
        first, *others = self._branches
        return {
            name: value
            for name, value in first.fixed.items()
            if all(_holds(other.fixed, name, value) for other in others)
        }

    @property
    def search_distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {BRANCH: self._labels} if len(self._branches) > 1 else {}
        for branch in self._branches:
            found |= branch.distributions
        return found

    @property
    def is_exhaustible(self) -> bool:
        return self.size() is not None

    @property
    def description(self) -> dict[str, Any]:
        return {"branches": [branch.description for branch in self._branches]}

    def suggest(self, trial: Any) -> dict[str, Any]:
        branch = self._branches[0]
        if len(self._branches) > 1:
            branch = self._branch(trial.suggest_categorical(BRANCH, self._labels.choices))
        stored = {name: suggest(trial, name, distribution) for name, distribution in branch.distributions.items()}
        return branch.values(stored)

    def at_random(self, rng: np.random.Generator) -> Suggestion:
        branch = self._branches[int(rng.integers(len(self._branches)))]
        drawn = {name: draw(distribution, rng) for name, distribution in branch.distributions.items()}
        return self._point(branch, drawn)

    def size(self) -> int | None:
        total = 0
        for branch in self._branches:
            counts = [count_of(distribution) for distribution in branch.distributions.values()]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                return None
            total += math.prod(known)
        return total

    def combinations(self) -> Iterator[Suggestion]:
        self._check_has_an_end()
        return self._all_points()

    def point(self, place: int) -> Suggestion:
        self._check_has_an_end()
        if place < 0:
            raise IndexError(place)
        for branch in self._branches:
            values = {name: values_of(found) for name, found in branch.distributions.items()}
            size = math.prod(map(len, values.values()))
            if place < size:
                chosen: dict[str, Any] = {}
                for name in reversed(values):
                    place, choice = divmod(place, len(values[name]))
                    chosen[name] = values[name][choice]
                return self._point(branch, {name: chosen[name] for name in values})
            place -= size
        raise IndexError(place)

    def _check_has_an_end(self) -> None:
        if not self.is_exhaustible:
            endless = [name for name, found in self.search_distributions.items() if count_of(found) is None]
            raise InputError(
                f"the space has no end: {', '.join(endless)} may take any value in a range. "
                "For a grid give choices, integers, or a step."
            )

    def encode(self, values: Mapping[str, Any], branch: str | None = None) -> Suggestion | None:
        for candidate in self._branches if branch is None else (self._branch(branch),):
            stored = candidate.encode(values)
            if stored is not None:
                return self._point(candidate, stored)
        return None

    def with_choices(self, choices: TaskChoices) -> Space:
        branches = _named([branch.with_choices(choices) for branch in self._branches])
        if not choices:
            return self
        found = copy.copy(self)
        found._branches = branches
        return found

    def with_samples(self, numbers: Sequence[int], defaults: Mapping[str, Any]) -> Space:
        found = copy.copy(self)
        found._branches = _named([branch.with_samples(numbers, defaults) for branch in self._branches])
        return found

    def _all_points(self) -> Iterator[Suggestion]:
        for branch in self._branches:
            names = list(branch.distributions)
            for chosen in itertools.product(*(values_of(found) for found in branch.distributions.values())):
                yield self._point(branch, dict(zip(names, chosen, strict=True)))

    def _branch(self, label: str) -> Branch:
        for branch in self._branches:
            if branch.label == label:
                return branch
        raise InputError(
            f"the space has no branch {label!r}; its branches are {', '.join(map(str, self._labels.choices))}"
        )

    def _point(self, branch: Branch, stored: Mapping[str, Any]) -> Suggestion:
        params, distributions = dict(stored), branch.distributions
        if len(self._branches) > 1:
            params = {BRANCH: branch.label, **params}
            distributions = {BRANCH: self._labels, **distributions}
        return Suggestion(params, distributions, branch.values(stored))

    def _most_new_tokens(self) -> int | None:
        limits = [branch.upper_bound("max_new_tokens") for branch in self._branches]
        known = [limit for limit in limits if limit is not None]
        return int(max(known)) if len(known) == len(limits) else None


class FunctionSpace(Space):
    """A function of a trial (define by run): what it searches is only known by running it.

    It is run a few times on random choices when the space is made, so that a wrong name is found before a model is
    loaded, and to learn which values never change.
    """

    def __init__(self, function: Callable[[Any], Any], choices: TaskChoices | None = None) -> None:
        self._function = function
        self._choices = choices
        rng = np.random.default_rng(0)
        self._probes = [self.at_random(rng) for _ in range(_PROBES)]

    @property
    def branches(self) -> tuple[Branch, ...]:
        return ()

    @property
    def fixed(self) -> dict[str, Any]:
        first, *others = self._probes
        return {
            name: value
            for name, value in first.values.items()
            if name not in first.distributions and all(_holds(other.values, name, value) for other in others)
        }

    @property
    def search_distributions(self) -> dict[str, BaseDistribution]:
        return {}

    @property
    def is_exhaustible(self) -> bool:
        return False

    @property
    def description(self) -> dict[str, Any]:
        of_task = {"choices": list(self._choices.first)} if self._choices else {}
        return {"function": describe_callable(self._function), **of_task}

    def suggest(self, trial: Any) -> dict[str, Any]:
        called = callable_name(self._function, "the space function")
        try:
            values = self._function(trial)
        except (KeyboardInterrupt, LlmsearchError, OptunaError):
            raise  # of the database, or said already
        except BaseException as error:
            raise InputError(f"{called} failed: {describe_error(error)}") from error
        if not isinstance(values, Mapping):
            raise InputError(f"{called} must return a dict of generation parameters, but returned {short(values)}")
        values = flattened(values)
        for name, value in values.items():
            if isinstance(value, BaseDistribution):
                raise InputError(f"{called} returned a distribution for {name!r}; call trial.suggest_... instead")
            check_value(name, value)
        return {**values, **self._chosen(values, trial)}

    def _chosen(self, values: Mapping[str, Any], trial: Any) -> dict[str, Any]:
        """What is chosen of the task, beside what the function says of it."""
        if self._choices is None:
            return {}
        self._choices.check_names(values)
        found = {}
        for choice in self._choices:
            if choice.name in values:
                choice.value_of(values[choice.name])
            else:
                searched_labels = searched(choice.name, Choices(choice.labels))
                found[choice.name] = searched_labels.decode(suggest(trial, choice.name, searched_labels.stored))
        return found

    def with_choices(self, choices: TaskChoices) -> Space:
        if choices:
            return FunctionSpace(self._function, choices)
        for probe in self._probes:
            choices.check_names(probe.values)
        return self

    def with_samples(self, numbers: Sequence[int], defaults: Mapping[str, Any]) -> Space:
        raise InputError(
            f"samples={list(numbers)} are searched, and the space is a function of the trial: let it return "
            f"'samples': trial.suggest_categorical('samples', {list(numbers)})"
        )

    def at_random(self, rng: np.random.Generator) -> Suggestion:
        trial = RandomTrial(rng)
        values = self.suggest(trial)
        return Suggestion(trial.params, trial.distributions, values)

    def size(self) -> int | None:
        return None

    def combinations(self) -> Iterator[Suggestion]:
        raise InputError("a space that is a function cannot be gone through as a grid; give a dict or a list of dicts")

    def point(self, place: int) -> Suggestion:
        raise InputError("a space that is a function cannot be gone through as a grid; give a dict or a list of dicts")

    def encode(self, values: Mapping[str, Any], branch: str | None = None) -> Suggestion | None:
        return None

    def _most_new_tokens(self) -> int | None:
        limits = [probe.values.get("max_new_tokens") for probe in self._probes]
        known = [int(limit) for limit in limits if limit is not None]
        if len(known) < len(limits):
            return None
        searched = [probe.distributions.get("max_new_tokens") for probe in self._probes]
        return max([*known, *(int(found.high) for found in searched if found is not None and hasattr(found, "high"))])


def _named(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Number repeated labels, and give every searched parameter the name under which Optuna stores it."""
    repeated = Counter(branch.label for branch in branches)
    seen: Counter[str] = Counter()
    labelled = []
    for branch in branches:
        seen[branch.label] += 1
        number = f"_{seen[branch.label]}" if repeated[branch.label] > 1 else ""
        labelled.append(branch.relabelled(branch.label + number))
    return tuple(
        branch.stored_as(_stored_name(branch, name, labelled) for name in branch.searched) for branch in labelled
    )


def _stored_name(branch: Branch, name: str, branches: Sequence[Branch]) -> str:
    """The plain name lets TPE learn across branches; it can stand for one distribution only."""
    stored = branch.searched[name].stored
    others = [other.searched[name].stored for other in branches if name in other.searched]
    return name if all(other == stored for other in others) else f"{branch.label}.{name}"


def _holds(values: Mapping[str, Any], name: str, value: Any) -> bool:
    return name in values and type(values[name]) is type(value) and bool(values[name] == value)


def _from_value(name: str, value: Any) -> Any:
    return from_table(name, value) if isinstance(value, Mapping) else value


def _from_list(name: str, values: Any) -> Any:
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(listed, list | tuple | range):
        raise InputError(f"{name}={short(values)} in the parameter grid must be a list of the values to try")
    if not listed:
        raise InputError(f"{name} in the parameter grid is an empty list; give at least one value")
    if len(listed) == 1:
        return listed[0]
    return Choices(tuple(listed))
