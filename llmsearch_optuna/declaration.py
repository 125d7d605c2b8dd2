"""How an option is declared: its text, its default, the numbers it takes, and how a study file says it.

`options` declares the options themselves, as keys of TypedDicts; they are read from there by the functions below.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ForwardRef, Literal, TypeVar, Union, cast, get_args, get_origin

from llmsearch_optuna.errors import InputError, is_one_of, short

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which numbers an option takes; None and texts such as ``"auto"`` are not its concern.

    Attributes:
        words: The same for people; what follows "must be".
        ge: The least.
        gt: The number that all are above.
        lt: The number that all are below.
        whole: Whether it takes whole numbers only.
        several: Whether it takes a list of such numbers, too.
    """

    words: str
    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    whole: bool = True
    several: bool = False

    def allow(self, value: Any) -> bool:
        """Whether it takes this value."""
        if value is None or isinstance(value, str):
            return True
        if self.several and isinstance(value, list | tuple | range):
            numbers = [
                item for item in value if isinstance(item, int | float) and replace(self, several=False).allow(item)
            ]
            return len(value) == len(set(numbers)) > 0
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float) or value != value:
            return False
        if isinstance(value, int) and abs(value) > sys.float_info.max:  # times and shares are made of it
            return False
        is_low = (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt)
        return not is_low and (self.lt is None or value < self.lt)


COUNT = Limits(words="a whole number from 1 on", ge=1)
AT_ONCE = Limits(words="a whole number from 1 to 65,536", ge=1, lt=65_537)
"""Of what is held in the memory at once."""


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a study file that says what an option says in Python.

    Attributes:
        table: Its table; ``""`` is the file itself.
        name: The key; None where it is called like the option.
        type: What TOML may say there, where Python may say more; as a text where it needs names of `study_file`.
        text: What it means, where that differs from what it means in Python.
        example: Stands in a new study file behind a ``#``, where the default says too little.
        filled: Stands in a new study file as a value, since a study needs it.
        is_required: Whether a study file must have it.
    """

    table: Literal["study", "model", "data", ""]
    name: str | None = None
    type: Any = None
    text: str | None = None
    example: Any = None
    filled: Any = None
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """An argument of `search`, `score` or `forecast`.

    Attributes:
        text: What it means, in a sentence or two.
        default: What a call means that leaves it out.
        more: What only Python users want to know beside.
        limits: Which numbers it takes; checked in Python and in study files.
        key: How a study file says it; None where only Python can.
        left_out: What leaving it out comes to, where the default is None so that a Task is not overruled.
        for_workers: Whether workers are handed it; False for what concerns the calling process alone.
    """

    text: str
    default: Any = None
    more: str = ""
    limits: Limits | None = None
    key: Key | None = None
    left_out: Any = None
    for_workers: bool = True

    @property
    def help(self) -> str:
        """What it means on the command line and in study files."""
        return self.text if self.key is None or self.key.text is None else self.key.text

    @property
    def effective(self) -> Any:
        """What leaving it out comes to, as TOML says it; None where that depends on other things."""
        found = self.left_out if self.default is None else self.default
        return list(found) if isinstance(found, tuple) else found


def declared(kind: Any) -> Mapping[str, Option]:
    """The options of a TypedDict, by name, in the order of their declarations."""
    return MappingProxyType({name: _option(name, found) for name, found in kind.__annotations__.items()})


def annotation(kind: Any, name: str) -> Any:
    """The type of an option as Python users give it; a text where it would need a library that is not loaded.

    Args:
        kind: The TypedDict that declares it.
        name: Its name.
    """
    found = get_args(kind.__annotations__[name])[0]
    return found.__forward_arg__ if isinstance(found, ForwardRef) else found


def completed(kind: type[T], given: Mapping[str, Any], function: str = "search", beside: Sequence[str] = ()) -> T:
    """Return options with the defaults of those that are left out.

    Args:
        kind: A TypedDict of options.
        given: Values by name.
        function: Whose options they are, for the errors.
        beside: What else can be given to it by name.

    Raises:
        TypeError: There is no such option; names the nearest.
        InputError: An option does not take this value.
    """
    known = declared(kind)
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"{function}() has no argument {name!r}{nearest(name, [*beside, *known])}")
        limits = known[name].limits
        if limits is not None and not (limits.allow(value) and _is_number_or_known_word(kind, name, value)):
            raise InputError(f"{name}={short(value)} must be {limits.words}")
        words = _words(annotation(kind, name))
        if words and not any(value is word or (isinstance(word, str) and is_one_of(value, word)) for word in words):
            raise InputError(f"{name}={short(value)} must be {' or '.join(repr(w) for w in words if w is not None)}")
    return cast(T, {name: given.get(name, option.default) for name, option in known.items()})


def _words(declared_type: Any) -> tuple[Any, ...]:
    """All values of an option that takes some words, True, False and None; nothing where it takes others, too."""
    if declared_type is bool:
        return (True, False)
    if declared_type is NoneType:
        return (None,)
    if get_origin(declared_type) is Literal:
        return get_args(declared_type)
    members = [_words(member) for member in get_args(declared_type)] if _is_union(declared_type) else []
    return tuple(word for words in members for word in words) if all(members) else ()


def _is_union(declared_type: Any) -> bool:
    return get_origin(declared_type) in (Union, UnionType)


def _is_number_or_known_word(kind: Any, name: str, value: Any) -> bool:
    """Whether an option of numbers takes this text or None, as it may take ``"auto"``; numbers are no concern here."""
    found = annotation(kind, name)
    words = {word for member in (found, *get_args(found)) for word in get_args(member) if isinstance(word, str)}
    if value is None:
        return "auto" in words or NoneType in get_args(found)
    return not isinstance(value, str) or value in words


def part(kind: type[T], options: Mapping[str, object]) -> T:
    """Return the options that a TypedDict declares, out of more of them; those that are not there stay away."""
    return cast(T, {name: options[name] for name in declared(kind) if name in options})


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean 'n_trials'?``, or nothing where no name is near."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _option(name: str, declaration: Any) -> Option:
    found = [part for part in get_args(declaration) if isinstance(part, Option)]
    if len(found) != 1:
        raise TypeError(f"the option {name!r} is declared without an Option: {declaration!r}")
    return found[0]
