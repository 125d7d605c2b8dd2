"""One branch of a space: a dict of generation parameters, some fixed, some searched.

How the branches of a space are told apart is decided in ``space``; a branch knows only itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from llmsearch_optuna.engine.sampling.after_thinking import flattened, is_after_thinking
from llmsearch_optuna.engine.sampling.param_values import thaw
from llmsearch_optuna.engine.sampling.params import GenerationParams, check_name, check_value
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.space.distributions import Choices, Searched, searched
from llmsearch_optuna.task.choices import TaskChoices

_DECIDING = ("do_sample", "num_beams", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


@dataclass(frozen=True)
class Branch:
    """Fixed and searched values that belong together.

    Attributes:
        label: How its texts are decoded (greedy, sampling, beam, beam_sampling, assisted; ``mixed`` where that is
            searched, ``default`` where the model's own configuration decides), numbered where it is repeated.
        fixed: Values that every trial of the branch has.
        searched: The searched parameters by generation parameter names.
        stored_names: Optuna's name of each searched parameter.
    """

    label: str
    fixed: Mapping[str, Any]
    searched: Mapping[str, Searched]
    stored_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions that Optuna stores, by Optuna's names."""
        return {self.stored_names[name]: found.stored for name, found in self.searched.items()}

    @property
    def description(self) -> dict[str, Any]:
        """The branch as JSON has it."""
        return {
            "label": self.label,
            "fixed": {name: _written(name, value) for name, value in sorted(self.fixed.items())},
            "searched": {
                name: {"stored_as": self.stored_names[name], **found.description}
                for name, found in sorted(self.searched.items())
            },
        }

    def values(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return all values to decode with, for what Optuna stored under its names."""
        chosen = {name: found.decode(stored[self.stored_names[name]]) for name, found in self.searched.items()}
        return {**self.fixed, **chosen}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what Optuna stores for these values, or None where the branch cannot decode with exactly them."""
        values = flattened(values)
        if set(values) != {*self.fixed, *self.searched}:
            return None
        if any(_written(name, values[name]) != _written(name, value) for name, value in self.fixed.items()):
            return None
        stored = {}
        for name, found in self.searched.items():
            encoded = found.encode(values[name])
            if encoded is None:
                return None
            (stored[self.stored_names[name]],) = encoded
        return stored

    def upper_bound(self, name: str) -> Any:
        """Return the largest value that a parameter can have in this branch, None where the branch has none."""
        if name in self.searched:
            numbers = [value for value in self.searched[name].ends() if value is not None]
            return max(numbers) if len(numbers) == len(self.searched[name].ends()) else None
        return self.fixed.get(name)

    def with_choices(self, choices: TaskChoices) -> Branch:
        """Return the branch with what of the task is chosen; what the branch itself says of it stays.

        Raises:
            InputError: The branch names a choice that the task has not, or a value that it cannot have.
        """
        choices.check_names([*self.fixed, *self.searched])
        added = {}
        for choice in choices:
            if choice.name in self.fixed:
                choice.value_of(self.fixed[choice.name])
            elif choice.name in self.searched:
                for value in self.searched[choice.name].ends():
                    choice.value_of(value)
            else:
                added[choice.name] = searched(choice.name, Choices(choice.labels))
        return replace(self, searched={**self.searched, **added})

    def with_samples(self, numbers: Sequence[int], defaults: Mapping[str, Any]) -> Branch:
        """Return the branch with the number of samples searched, where it samples and says nothing of them itself.

        Args:
            numbers: To choose from.
            defaults: The model's generation configuration.
        """
        named = {*self.fixed, *self.searched}
        deciding = {name: defaults[name] for name in _DECIDING if name in defaults and name not in self.searched}
        kind = _kind({**deciding, **self.fixed}, self.searched)
        is_sampled = kind not in ("greedy", "beam", "default") or any(map(is_after_thinking, named))
        if "samples" in named or not is_sampled:
            return self
        return replace(self, searched={**self.searched, "samples": searched("samples", Choices(tuple(numbers)))})

    def relabelled(self, label: str) -> Branch:
        """Return the branch under another label."""
        return replace(self, label=label)

    def stored_as(self, names: Iterable[str]) -> Branch:
        """Return the branch with Optuna's names for its searched parameters, in their order."""
        return replace(self, stored_names=dict(zip(self.searched, names, strict=True)))


def make_branch(values: object, place: int | None) -> Branch:
    """Check one dict of a space and return it as a branch with the label of its kind.

    Args:
        values: Generation parameters; ``optuna.distributions`` objects are searched, all others fixed.
        place: Its place in the list of branches, for messages; None where there is only one.

    Raises:
        InputError: It is no dict; an unknown name; a value or an end of a range that is not allowed.
    """
    where = "" if place is None else f"branch {place + 1} of the space: "
    if not isinstance(values, Mapping):
        raise InputError(f"{where}{short(values)} is no dict of generation parameters")
    fixed: dict[str, Any] = {}
    found: dict[str, Searched] = {}
    try:
        for name, value in flattened(values).items():
            check_name(name)
            if name == "samples" and isinstance(value, list | tuple | range) and len(value) > 0:
                value = Choices(tuple(value)) if len(value) > 1 else value[0]  # a number of samples is never a list
            if isinstance(value, BaseDistribution | Choices):
                found[name] = searched(name, value)
            else:
                _check_fixed(name, value)
                fixed[name] = value
        return Branch(_kind(fixed, found), fixed, found, {name: name for name in found})
    except InputError as problem:
        raise InputError(f"{where}{problem}") from None


def _check_fixed(name: str, value: Any) -> None:
    try:
        check_value(name, value)
    except InputError as problem:
        listed = isinstance(value, list | tuple | range) and len(value) > 0
        hint = " A list is one fixed value; to search its items write CategoricalDistribution(...)." if listed else ""
        raise InputError(f"{problem}{hint}") from None


def _kind(fixed: Mapping[str, Any], found: Mapping[str, Searched]) -> str:
    deciding = [name for name in _DECIDING if name in found or fixed.get(name) is not None]
    if not deciding:
        return "default"
    settings: list[dict[str, Any]] = [{}]
    for name in deciding:
        options = _options(found[name]) if name in found else (fixed[name],)
        settings = [{**setting, name: option} for setting in settings for option in options]
    kinds = {GenerationParams.of(setting).kind for setting in settings}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _options(found: Searched) -> tuple[Any, ...]:
    """A range of beam counts is a beam search, even where it starts at one beam."""
    return found.ends() if isinstance(found.stored, CategoricalDistribution) else found.ends()[-1:]


def _written(name: str, value: Any) -> Any:
    written = thaw(check_value(name, value))
    if isinstance(written, bool | int | float | str | list | dict | type(None)):
        return written
    return f"{type(written).__module__}.{type(written).__qualname__}"  # cache and compiler settings: no effect on text
