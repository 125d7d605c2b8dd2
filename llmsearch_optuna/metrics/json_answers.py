"""Metrics of answers that are to be JSON: whether they are, whether they fit a schema, how many fields are right."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import regex

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.by_row import Row, by_row
from llmsearch_optuna.metrics.factories import named
from llmsearch_optuna.metrics.metric import Metric

Validator = Callable[[Any], bool]

_FENCE = regex.compile(r"```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", regex.DOTALL)


@named
def json_valid(*, fenced: bool = False) -> Metric:
    """Return 1 for a text that is JSON (RFC 8259) and nothing else, 0 for any other.

    Args:
        fenced: Take the content of the first Markdown code block, where there is one.
    """
    return by_row(
        "json_valid",
        lambda text, _: float(_answer(text, fenced) is not NO_JSON),
        _nothing,
        answer=lambda text: json_answer(text, fenced),
        fenced=fenced,
    )


@named
def json_schema(
    *, schema: Mapping[str, Any] | str | Path | None = None, column: str | None = None, fenced: bool = False
) -> Metric:
    """Return 1 for a text that is JSON and fits a JSON schema, 0 for any other.

    Schemas are those of the ``jsonschema`` package, by their ``$schema``, else the newest draft; ``format`` is not
    checked, and no reference to another document is followed.

    Args:
        schema: The schema, or a file that holds it. Without it, and without ``column``, each row's reference is one.
        column: The column of the rows that holds each row's schema.
        fenced: Take the content of the first Markdown code block, where there is one.

    Raises:
        InputError: The schema is none, or both places are given.
    """
    if schema is not None and column is not None:
        raise InputError("json_schema takes schema= or column=, not both")
    given = None if schema is None else _schema_of(schema)
    fixed = None if given is None else _checked("schema=", given)

    def read(reference: Any, row: Row) -> Validator:
        if fixed is not None:
            return fixed
        return _validator_of(_column(row, column) if column is not None else reference)

    def score(text: str, validator: Validator) -> float:
        answer = _answer(text, fenced)
        return float(answer is not NO_JSON and validator(answer))

    columns = [] if column is None else [column]
    return by_row(
        "json_schema",
        score,
        read,
        columns=columns,
        answer=lambda text: json_answer(text, fenced),
        schema=given,
        column=column,
        fenced=fenced,
    )


@named
def json_fields(*, fenced: bool = False) -> Metric:
    """Return the share of the reference object's fields that the answer has right.

    A field of a field counts by its own (``address.city``); a list is one field, equal as a whole and in order.
    Numbers are equal by value; texts, white space at their ends and runs of it aside. Fields that the reference has
    not do not count. The reference is an object, its JSON, or several columns; of a list of objects the best counts.

    Args:
        fenced: Take the content of the first Markdown code block, where there is one.
    """

    def read(reference: Any, row: Row) -> list[dict[tuple[str, ...], Any]]:
        return [_reference_fields(one) for one in (reference if isinstance(reference, list) else [reference])]

    def score(text: str, references: list[dict[tuple[str, ...], Any]]) -> float:
        answer = _answer(text, fenced)
        if not isinstance(answer, dict):
            return 0.0
        found = fields_of(answer)
        return max(share_right(found, expected) for expected in references)

    return by_row("json_fields", score, read, answer=lambda text: json_answer(text, fenced), fenced=fenced)


class _NoJson:
    """What a text holds that is no JSON; None is JSON's null."""


NO_JSON = _NoJson()


def parse(text: str) -> Any:
    """Return the value of a JSON text, or `NO_JSON`. NaN and Infinity are no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return NO_JSON


def unfenced(text: str) -> str:
    """Return the content of the first Markdown code block, or the text where there is none."""
    found = _FENCE.search(text)
    return text if found is None else str(found.group(1))


def fields_of(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the fields of an object by their paths; an object in it is its fields, an empty one is a field.

    >>> fields_of({"name": "Ada", "born": {"year": 1815}})
    {('name',): 'Ada', ('born', 'year'): 1815}
    """
    found: dict[tuple[str, ...], Any] = {}
    for name, field in value.items():
        here = (*path, str(name))
        found |= fields_of(field, here) if isinstance(field, Mapping) and field else {here: field}
    return found


def share_right(found: Mapping[tuple[str, ...], Any], expected: Mapping[tuple[str, ...], Any]) -> float:
    """Return the share of the expected fields that were found with the same value."""
    return sum(path in found and equal(found[path], value) for path, value in expected.items()) / len(expected)


def equal(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal: numbers by value, texts without regard to runs of white space."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return one.split() == other.split()
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    return bool(one == other)


def json_answer(text: str, fenced: bool = False) -> Hashable | None:
    """Return what a JSON text says, equal for values that are `equal`; None for a text that is no JSON.

    >>> json_answer('{"a": 1, "b": [true]}') == json_answer('{"b": [true],  "a": 1.0}')
    True
    """
    value = _answer(text, fenced)
    return None if value is NO_JSON else hashable(value)


def hashable(value: Any) -> Hashable:
    """Return what stands for a JSON value in sets and dicts: the same for values that are `equal`."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, str):
        return ("text", tuple(value.split()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(hashable, value)))
    if isinstance(value, Mapping):
        return ("object", frozenset((name, hashable(one)) for name, one in value.items()))
    return ("value", value)


def read_file(path: str | Path, what: str) -> Any:
    """Return the JSON of a file; ``what`` names the option in errors."""
    try:
        found = parse(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{what}{str(path)!r} cannot be read: {problem}") from None
    if found is NO_JSON:
        raise InputError(f"{what}{str(path)!r} is no JSON")
    return found


def schema_validator(schema: Any) -> Validator:
    """Return what tells whether a value fits a schema.

    Raises:
        ValueError: It is no schema.
    """
    # Cached by the text: a schema that stands in a column is the same in most rows.
    return _compiled(json.dumps(schema, sort_keys=True))


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> Validator:
    import jsonschema
    from referencing import Registry

    schema = json.loads(text)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as problem:
        raise ValueError(f"no JSON schema: {problem.message}") from None
    # An empty registry: without one jsonschema would fetch what a "$ref" names from the network.
    validator = kind(schema, registry=Registry())
    return lambda value: bool(validator.is_valid(value))


def _answer(text: str, fenced: bool) -> Any:
    return parse(unfenced(text) if fenced else text)


def _nothing(reference: Any, row: Row) -> None:
    """A metric that compares with nothing."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _schema_of(given: Mapping[str, Any] | str | Path) -> Any:
    return dict(given) if isinstance(given, Mapping) else read_file(given, "schema=")


def _checked(what: str, schema: Any) -> Validator:
    if not isinstance(schema, dict | bool):
        raise InputError(f"{what}{short(schema)} is no JSON schema: it must be an object")
    try:
        return schema_validator(schema)
    except (TypeError, ValueError) as problem:
        raise InputError(f"{what}{short(schema)} is {problem}") from None


def _validator_of(given: Any) -> Validator:
    schema = parse(given) if isinstance(given, str) else given
    if not isinstance(schema, Mapping | bool):
        raise ValueError(
            f"{short(given)} is no JSON schema; give schema= (an object or a file), column= with a schema in every "
            "row, or schemas as references"
        )
    return schema_validator(schema if isinstance(schema, bool) else dict(schema))


def _column(row: Row, column: str) -> Any:
    if column not in row:
        raise ValueError(f"it has no column {column!r}; its columns are {', '.join(row)}")
    return row[column]


def _reference_fields(reference: Any) -> dict[tuple[str, ...], Any]:
    value = parse(reference) if isinstance(reference, str) else reference
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"the reference {short(reference)} is no object with fields; give a column with objects or their JSON, "
            "or several columns"
        )
    return fields_of(value)
