"""Metrics of how a text ends: by itself or cut off, in a loop or not, and within a length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import regex

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.by_row import Row, by_completion
from llmsearch_optuna.metrics.factories import named
from llmsearch_optuna.metrics.metric import Metric

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion

Unit: TypeAlias = Literal["words", "characters", "tokens"]

# Scripts that put no space between words count letter by letter.
_WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\w']+|[^\w\s]")


@named
def terminates() -> Metric:
    """Return 1 for a text that ended by itself (an end token or a stop string), 0 for one cut at max_new_tokens."""
    return by_completion("terminates", lambda _, completion: float(completion.finish_reason in ("eos", "stop")))


@named
def no_loop(*, unit: Unit = "words", longest: int = 32, times: int = 3, shortest: int = 10) -> Metric:
    """Return 0 for a text that ends in a loop, 1 for any other.

    A loop is an n-gram of up to ``longest`` units that stands more than ``times`` times in a row at the end of the
    text; its last repetition may be cut off anywhere. Repetitions that are shorter than ``shortest`` units together
    (``"no, no, no, no"``) are no loop.

    Args:
        unit: ``"words"`` (a punctuation mark is one, and so is a letter of a script without spaces, such as Chinese
            or Thai), ``"characters"``, or ``"tokens"``, where whatever decodes tells their numbers.
        longest: The longest n-gram looked for.
        times: So many repetitions are still allowed.
        shortest: So many units the repetitions must have together.

    Raises:
        InputError: No such unit, or a number below 1.
    """
    _check_unit(unit)
    for name, value in (("longest", longest), ("times", times), ("shortest", shortest)):
        _check_count(name, value)

    def score(text: str, completion: Completion) -> float:
        units = _units(text, completion, unit)
        # A text that was cut may end in half a word.
        ends = (units, units[:-1]) if unit == "words" else (units,)
        return float(not any(loops(end, longest=longest, times=times, shortest=shortest) for end in ends))

    return by_completion("no_loop", score, unit=unit, longest=longest, times=times, shortest=shortest)


def loops(units: Sequence[Any], *, longest: int, times: int, shortest: int) -> bool:
    """Tell whether a sequence ends in an n-gram that is repeated more than ``times`` times; see `no_loop`."""
    return any(
        _periodic_end(units, period) >= max((times + 1) * period, shortest)
        for period in range(1, min(longest, len(units) // (times + 1)) + 1)
    )


@named
def length_within(*, low: float | None = None, high: float | None = None, unit: Unit = "words") -> Metric:
    """Return 1 for a text whose length is from ``low`` to ``high``, both included, 0 for any other.

    Where neither is given, the reference is the range: two numbers, or one that is the upper end.

    Args:
        low: The least length.
        high: The greatest length.
        unit: ``"words"`` (as `no_loop` counts them, without punctuation), ``"characters"`` or ``"tokens"`` (the
            ending one included).

    Raises:
        InputError: No such unit, or a range without room.
    """
    _check_unit(unit)
    given = None if low is None and high is None else _range(low, high)

    def read(reference: Any, row: Row) -> tuple[float, float]:
        return _read_range(reference) if given is None else given

    def function(
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Completion],
    ) -> list[float]:
        found = []
        for text, reference, row, completion in zip(predictions, references, rows, completions, strict=True):
            least, most = read(reference, row)
            found.append(float(least <= _LENGTH[unit](text, completion) <= most))
        return found

    return Metric(
        name="length_within",
        function=function,
        bounds=(0.0, 1.0),
        per_row=True,
        description={"built_in": "length_within", "low": low, "high": high, "unit": unit},
        reads_completions=unit == "tokens",
        check_row=read,
    )


_LENGTH: Mapping[str, Callable[[str, Any], int]] = {
    "words": lambda text, _: sum(word[0].isalnum() or word[0] == "_" for word in _WORDS.findall(text)),
    "characters": lambda text, _: len(text),
    "tokens": lambda _, completion: len(completion.token_ids),
}


def _units(text: str, completion: Completion, unit: Unit) -> Sequence[Any]:
    if unit == "tokens":
        return completion.token_ids
    return list(_WORDS.findall(text)) if unit == "words" else text.rstrip()


def _periodic_end(units: Sequence[Any], period: int) -> int:
    """How many units at the end repeat with this period; at least the period itself."""
    length = period
    while length < len(units) and units[-1 - length] == units[-1 - length + period]:
        length += 1
    return length


def _range(low: Any, high: Any) -> tuple[float, float]:
    ends = (0.0 if low is None else low, float("inf") if high is None else high)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends) or not 0 <= ends[0] <= ends[1]:
        raise InputError(
            f"low={short(low)} and high={short(high)} must be two numbers from 0 on, the lower one first; "
            "without both the reference is the range, such as [20, 60]"
        )
    return float(ends[0]), float(ends[1])


def _read_range(reference: Any) -> tuple[float, float]:
    ends = list(reference) if isinstance(reference, list | tuple) else [None, reference]
    if len(ends) != 2 or reference is None:
        raise ValueError(
            f"the reference {short(reference)} is no range of lengths: give two numbers such as [20, 60], or one that "
            "is the upper end; or give low= and high= to the metric"
        )
    return _range(*(_number(end) for end in ends))


def _number(end: Any) -> Any:
    if not isinstance(end, str):
        return end
    try:
        return float(end)
    except ValueError:
        return end


def _check_unit(unit: object) -> None:
    if unit not in get_args(Unit):
        raise InputError(f"unit={short(unit)} must be one of {', '.join(get_args(Unit))}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={short(value)} must be a whole number from 1 on")
