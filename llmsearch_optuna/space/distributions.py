"""One searched parameter: the values a user lets it take, as Optuna stores them and as they are decoded.

Optuna's categories may only be None, bool, int, float and str; lists, tuples and dicts are stored under their JSON
text. Which parameters belong together is not known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from llmsearch_optuna.engine.sampling.params import check_value
from llmsearch_optuna.errors import InputError, short

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Choices:
    """Values to choose from, of any kind; an Optuna categorical distribution that does not warn about lists."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Searched:
    """One searched generation parameter.

    Attributes:
        stored: The distribution that Optuna stores.
        choices: For categories, the values that the stored labels stand for, in the same order; None otherwise.
    """

    stored: BaseDistribution
    choices: tuple[Any, ...] | None = None

    def decode(self, stored: Any) -> Any:
        """Return the value to decode with for what Optuna stored."""
        if self.choices is None:
            return stored
        return self.choices[int(self.stored.to_internal_repr(stored))]

    def encode(self, value: Any) -> tuple[Any] | None:
        """Return what Optuna stores for a value, in a tuple of one; None where the value cannot be chosen."""
        if isinstance(self.stored, CategoricalDistribution):
            for label, choice in zip(self.stored.choices, self.choices or (), strict=True):
                if _same(choice, value):
                    return (label,)
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if isinstance(self.stored, IntDistribution) and value != int(value):
            return None
        inside = self.stored._contains(self.stored.to_internal_repr(value))
        return (value,) if inside else None

    def ends(self) -> tuple[Any, ...]:
        """Return the values to be checked: all categories, or both ends of a range."""
        if self.choices is not None:
            return self.choices
        assert isinstance(self.stored, FloatDistribution | IntDistribution)
        return (self.stored.low, self.stored.high)

    @property
    def description(self) -> Any:
        """The distribution as JSON has it."""
        return json.loads(distribution_to_json(self.stored))


def searched(name: str, found: BaseDistribution | Choices) -> Searched:
    """Check a distribution of the generation parameter ``name`` and return how it is stored.

    Raises:
        InputError: A range or category that is not allowed, two categories that Optuna cannot tell apart.
    """
    if isinstance(found, Choices | CategoricalDistribution):
        made = _labelled(name, found.values if isinstance(found, Choices) else found.choices)
    elif isinstance(found, FloatDistribution | IntDistribution):
        if found.low > found.high:
            raise InputError(f"{name}: the lower end {found.low} of its range is above the upper end {found.high}")
        made = Searched(found)
    else:
        raise InputError(
            f"{name}={short(found)}: use optuna.distributions' FloatDistribution, IntDistribution or "
            "CategoricalDistribution"
        )
    for value in made.ends():
        _check(name, value, found)
    return made


def _wrong_keys(table: Mapping[str, Any]) -> str | None:
    if "choices" in table:
        return "choices takes a list, and stands alone"
    unknown = [key for key in table if key not in ("low", "high", "step", "log")]
    missing = [key for key in ("low", "high") if key not in table]
    if unknown:
        return f"{', '.join(unknown)} is unknown here"
    return f"{' and '.join(missing)} is missing" if missing else None


def from_table(name: str, table: Mapping[str, Any]) -> BaseDistribution | Choices:
    """Return the distribution that a table of a study file describes.

    ``{low = 0.1, high = 1.2, log = true}`` or ``{low = 1, high = 6, step = 1}`` is a range, whole numbers where the
    parameter takes only these; ``{choices = [...]}`` is a choice.

    Raises:
        InputError: Unknown keys, ends that are missing or no numbers, low > high.
    """
    if set(table) == {"choices"} and isinstance(table["choices"], list | tuple):
        return Choices(tuple(table["choices"]))
    if wrong := _wrong_keys(table):
        raise InputError(
            f"{name}={short(dict(table))}: {wrong}; a searched value is {{low, high, step?, log?}} or {{choices}}"
        )
    low, high, step, log = table["low"], table["high"], table.get("step"), bool(table.get("log", False))
    for end in (low, high, *(() if step is None else (step,))):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise InputError(f"{name}={short(dict(table))}: {short(end)} is no number")
    if low > high:
        raise InputError(f"{name}: the lower end {low} of its range is above the upper end {high}")
    try:
        if _is_whole(name, low, high, step):
            return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as problem:
        raise InputError(f"{name}={short(dict(table))}: {problem}") from None


def suggest(trial: Any, name: str, found: BaseDistribution) -> Any:
    """Ask an Optuna trial for a value through its public methods."""
    if isinstance(found, FloatDistribution):
        return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
    assert isinstance(found, CategoricalDistribution)
    return trial.suggest_categorical(name, found.choices)


def count_of(found: BaseDistribution) -> int | None:
    """Return how many values a distribution has, None for a range without steps."""
    if isinstance(found, CategoricalDistribution):
        return len(found.choices)
    if isinstance(found, IntDistribution):
        return (found.high - found.low) // found.step + 1
    assert isinstance(found, FloatDistribution)
    if found.low == found.high:
        return 1
    return None if found.step is None else round((found.high - found.low) / found.step) + 1


def values_of(found: BaseDistribution) -> Sequence[Any]:
    """Return all values of a distribution that has finitely many, in rising or given order."""
    if isinstance(found, CategoricalDistribution):
        return found.choices
    if isinstance(found, IntDistribution):
        return range(found.low, found.high + 1, found.step)
    assert isinstance(found, FloatDistribution)
    if found.low == found.high:
        return (found.low,)
    # in decimals, so that 0.1 + 2 * 0.1 is 0.3
    low, step = Decimal(str(found.low)), Decimal(str(found.step))
    return tuple(float(low + place * step) for place in range(count_of(found) or 0))


def draw(found: BaseDistribution, rng: np.random.Generator) -> Any:
    """Return a value drawn uniformly, on the logarithm where the range is logarithmic."""
    count = count_of(found)
    if isinstance(found, FloatDistribution | IntDistribution) and found.log:
        half = 0.5 if isinstance(found, IntDistribution) else 0.0
        drawn = math.exp(rng.uniform(math.log(found.low - half), math.log(found.high + half)))
        inside = min(max(drawn, found.low), found.high)
        return round(inside) if isinstance(found, IntDistribution) else inside
    if count is not None:
        return values_of(found)[int(rng.integers(count))]
    assert isinstance(found, FloatDistribution)
    return float(rng.uniform(found.low, found.high))


class RandomTrial:
    """What a define-by-run function gets where no study exists yet: every suggestion is a random draw."""

    number = 0

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.user_attrs: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Draw a float, as ``optuna.Trial.suggest_float``."""
        return float(self._drawn(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Draw an integer, as ``optuna.Trial.suggest_int``."""
        return int(self._drawn(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of the choices, as ``optuna.Trial.suggest_categorical``."""
        return self._drawn(name, CategoricalDistribution(choices))

    def set_user_attr(self, key: str, value: Any) -> None:
        """Remember an attribute, as ``optuna.Trial.set_user_attr``."""
        self.user_attrs[key] = value

    def _drawn(self, name: str, found: BaseDistribution) -> Any:
        if name not in self.params:
            self.params[name] = draw(found, self._rng)
            self.distributions[name] = found
        return self.params[name]


def _labelled(name: str, choices: Sequence[Any]) -> Searched:
    if not choices:
        raise InputError(f"{name}: its list of choices is empty; give at least one value")
    labels: Sequence[Any] = tuple(choices)
    if not all(isinstance(choice, _PLAIN) for choice in choices):
        # texts beside lists become JSON too: the text '["a"]' and the list ["a"] stay two
        labels = [_json(name, choice) if not _is_bare(choice) else choice for choice in choices]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            raise InputError(
                f"{name}: the choices {short(choices[labels.index(label)])} and {short(choices[place])} are the same "
                "to Optuna; leave one out"
            )
    return Searched(CategoricalDistribution(labels), tuple(choices))


def _is_bare(choice: Any) -> bool:
    return isinstance(choice, _PLAIN) and not isinstance(choice, str)


def _json(name: str, choice: Any) -> str:
    try:
        return json.dumps(_jsonable(choice), sort_keys=True, ensure_ascii=False)
    except TypeError:
        raise InputError(
            f"{name}: the choice {short(choice)} cannot be stored; choices are None, numbers, texts, lists and dicts "
            "of them"
        ) from None


def _jsonable(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _jsonable(item) for key, item in value.items()}
        return sorted(([_jsonable(key), _jsonable(item)] for key, item in value.items()), key=json.dumps)
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def _same(choice: Any, value: Any) -> bool:
    if isinstance(choice, bool) != isinstance(value, bool):
        return False
    if isinstance(choice, list | tuple) and isinstance(value, list | tuple):
        return bool(_jsonable(choice) == _jsonable(value))
    return bool(choice == value)


def _check(name: str, value: Any, found: object) -> None:
    try:
        check_value(name, value)
    except InputError as problem:
        shown = f"Choices{found.values!r}" if isinstance(found, Choices) else repr(found)
        whole = isinstance(found, FloatDistribution) and float(value).is_integer() and _takes(name, int(value))
        hint = " Use IntDistribution." if whole else ""
        raise InputError(f"{problem}{hint} It comes from {shown}.") from None


def _takes(name: str, value: Any) -> bool:
    try:
        check_value(name, value)
    except InputError:
        return False
    return True


def _is_whole(name: str, low: float, high: float, step: float | None) -> bool:
    """Whether the range is one of integers: a parameter that takes a half as well gets a range of floats."""
    if not all(float(number).is_integer() for number in (low, high, step or 0)):
        return False
    return not _takes(name, (low + 0.5) if low < high else low + 0.0)
