"""References of any kind that data comes with, as plain values: a text, or a list where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from llmsearch_optuna.errors import short


def plain_reference(reference: Any) -> Any:
    """Return several references, whatever holds them, as a list without missing ones; anything else as it is.

    Arrays of numpy, pandas, torch and pyarrow, tuples and sets are lists of several references, as lists are. Sets come
    in a fixed order.

    >>> plain_reference({"b", "a"})
    ['a', 'b']
    >>> plain_reference(("x", None))
    ['x']
    """
    if isinstance(reference, str | bytes | Mapping | type) or reference is None:
        return reference
    for method in ("as_py", "to_pylist", "tolist"):  # pyarrow's scalars and arrays; numpy, pandas, torch
        convert = getattr(reference, method, None)
        if callable(convert):
            reference = convert()
            break
    if isinstance(reference, AbstractSet):
        reference = sorted(reference, key=lambda value: (type(value).__name__, repr(value)))
    if isinstance(reference, list | tuple) or hasattr(reference, "__iter__"):
        several = list(reference) if not isinstance(reference, str | Mapping) else reference
        return [value for value in several if not is_missing(value)] if isinstance(several, list) else several
    return reference


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, or the NaN, NA or NaT that data frames put where nothing stands."""
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def reference_texts(reference: Any) -> list[str]:
    """Return the texts that a prediction is compared with.

    Raises:
        TypeError: It is no text and no list of texts.
        ValueError: It is an empty list.
    """
    reference = plain_reference(reference)
    if isinstance(reference, Mapping):
        raise TypeError(
            f"this built-in metric compares with one text, but the reference has the columns {', '.join(reference)}; "
            "name one column, let a function pick the text (reference=lambda row: ...), or give a function as metric"
        )
    if isinstance(reference, bytes):
        raise TypeError(
            f"the reference is {short(reference, 60)}, bytes and no text; decode them (reference=lambda row: ...)"
        )
    if is_missing(reference):
        raise TypeError("there is no reference to compare with; give reference= (a column or a function of the row)")
    if isinstance(reference, list):
        if not reference:
            raise ValueError("the list of references is empty")
        for value in reference:
            if isinstance(value, list | tuple | bytes | Mapping):
                raise TypeError(f"one of several references is {short(value)}, which is no text")
        return [str(text) for text in reference]
    return [str(reference)]


def problems_of(references: Sequence[Any], check: Any) -> dict[int, str]:
    """Return what is wrong with each reference with which something is, by place.

    Args:
        references: One a row.
        check: Raises TypeError or ValueError for texts that a metric cannot use, such as one without a number.
    """
    problems = {}
    for place, reference in enumerate(references):
        try:
            for text in reference_texts(reference):
                check(text)
        except (TypeError, ValueError) as problem:
            problems[place] = str(problem)
    return problems
