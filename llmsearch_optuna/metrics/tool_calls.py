"""The metric of tool calls: finds the calls in a text, whatever form the model's chat template gives them, and judges
them against the tools and the expected calls."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
from scipy.optimize import linear_sum_assignment

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.by_row import Row, by_row
from llmsearch_optuna.metrics.factories import named
from llmsearch_optuna.metrics.json_answers import NO_JSON, equal, hashable, parse, read_file, schema_validator, unfenced
from llmsearch_optuna.metrics.metric import Metric

TOOLS_COLUMN = "tools"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call.

    Attributes:
        name: The function's.
        arguments: By name; None where they are no JSON object.
    """

    name: str
    arguments: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Expected:
    calls: tuple[ToolCall, ...]
    tools: Mapping[str, Any] | None


@named
def tool_call(*, tools: Sequence[Mapping[str, Any]] | str | Path | None = None, column: str | None = None) -> Metric:
    """Return how far a text is the right tool call, in four parts of a quarter each.

    1. It parses: there is a call with a name in it.
    2. The function is one of the tools.
    3. The arguments are an object that fits the function's schema.
    4. The arguments are right: the share of all arguments, expected or given, that are equal; none of another function.

    Each part needs those before it. Several calls are paired with the expected ones as well as can be, in any order;
    a call that is missing or superfluous scores 0. Where no call is expected (an empty list), a text without one
    scores 1 and any other 0.

    Understood are OpenAI's ``tool_calls`` (as an object, a list or one call, ``arguments`` as a text or an object), and
    what chat templates make models write: ``<tool_call>{…}</tool_call>`` (Hermes, Qwen, SmolLM),
    ``[TOOL_CALLS]`` with a list or ``name[ARGS]{…}`` (Mistral), ``<|python_tag|>{"name": …, "parameters": …}``
    (Llama 3), ``<function=name>{…}</function>``, ``[name(city="Paris")]`` (Llama 4, Gemma), and JSON in a Markdown
    code block.

    Args:
        tools: Tools as OpenAI's interface takes them, or a JSON file of them.
        column: The column with each row's tools (a list, or its JSON); ``"tools"`` by default, where there is one.
            Without tools the expected call's function is the only one, and its arguments may be any object.

    Raises:
        InputError: The tools are none, or both places are given.
    """
    if tools is not None and column is not None:
        raise InputError("tool_call takes tools= or column=, not both")
    described = read_file(tools, "tools=") if isinstance(tools, str | Path) else tools
    try:
        given = None if described is None else _tools(described)
    except ValueError as problem:
        raise InputError(f"tools={short(tools)}: {problem}") from None

    def read(reference: Any, row: Row) -> _Expected:
        return _Expected(_expected_calls(reference), given if given is not None else _tools_of(row, column))

    return by_row(
        "tool_call",
        lambda text, expected: score_calls(find_calls(text), expected.calls, expected.tools),
        read,
        columns=[] if given is not None else [column or TOOLS_COLUMN],
        answer=_calls_answer,
        tools=described if described is None else list(described),
        column=column,
    )


def _calls_answer(text: str) -> Hashable:
    """The calls of a text, whatever their form and order; without one it answers that nothing is to be called."""
    return frozenset(Counter((call.name, hashable(call.arguments)) for call in find_calls(text)).items())


def find_calls(text: str) -> list[ToolCall]:
    """Return the calls in a text, in their order; see `tool_call` for the forms."""
    for form in (_in_tool_call_tags, _of_mistral, _in_function_tags):
        found = list(form(text))
        if found:
            return found
    bare = text.strip().removeprefix("[TOOL_CALLS]").removeprefix("<|python_tag|>").strip()
    for candidate in (bare, unfenced(bare).strip()):
        value = parse(candidate)
        found = list(_calls_in(value)) if value is not NO_JSON else list(_one_after_another(candidate))
        if found or (found := list(_pythonic(candidate))):
            return found
    return []


def score_calls(found: Sequence[ToolCall], expected: Sequence[ToolCall], tools: Mapping[str, Any] | None) -> float:
    """Return the score of `tool_call`, from 0 to 1.

    Args:
        found: The calls in the text.
        expected: The right calls.
        tools: Function name -> schema of its arguments; None where they are not known.
    """
    if not found or not expected:
        return float(not found and not expected)
    known = {call.name: True for call in expected} if tools is None else tools
    scores = np.array([[_score(call, right, known) for right in expected] for call in found])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return float(scores[rows, columns].sum()) / max(len(found), len(expected))


def _score(call: ToolCall, right: ToolCall, tools: Mapping[str, Any]) -> float:
    if call.name not in tools:
        return 0.25
    if call.arguments is None or not schema_validator(tools[call.name])(dict(call.arguments)):
        return 0.5
    return 0.75 + (0.25 * _arguments_right(call.arguments, right.arguments or {}) if call.name == right.name else 0.0)


def _arguments_right(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    names = found.keys() | expected.keys()
    right = sum(name in found and name in expected and equal(found[name], expected[name]) for name in names)
    return right / len(names) if names else 1.0


# The forms


_TAGGED = regex.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", regex.DOTALL)
_FUNCTION = regex.compile(r"<function=([\w.:-]+)>(.*?)(?:</function>|\Z)", regex.DOTALL)
_MISTRAL = regex.compile(r"(?:\[TOOL_CALLS\])?\s*([\w.:-]+)\s*(?:\[CALL_ID\][\w-]*)?\[ARGS\]")


def _in_tool_call_tags(text: str) -> Iterator[ToolCall]:
    for found in _TAGGED.finditer(text):
        yield from _calls_in(parse(found.group(1)))


def _of_mistral(text: str) -> Iterator[ToolCall]:
    for found in _MISTRAL.finditer(text):
        value, _ = _leading_json(text[found.end() :])
        yield ToolCall(found.group(1), value if isinstance(value, Mapping) else None)


def _in_function_tags(text: str) -> Iterator[ToolCall]:
    for found in _FUNCTION.finditer(text):
        value = parse(found.group(2))
        yield ToolCall(found.group(1), value if isinstance(value, Mapping) else None)


def _one_after_another(text: str) -> Iterator[ToolCall]:
    """Objects separated by white space or semicolons, as Llama 3 writes several calls."""
    while text := text.lstrip(" \t\r\n;"):
        value, text = _leading_json(text)
        if value is NO_JSON:
            return
        yield from _calls_in(value)


def _leading_json(text: str) -> tuple[Any, str]:
    """The JSON value that a text begins with, and what is left of the text."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return NO_JSON, ""
    return value, text[end:]


def _calls_in(value: Any) -> Iterator[ToolCall]:
    """The calls that a JSON value is: an object with ``tool_calls``, a list of calls, or one call."""
    if isinstance(value, list):
        for item in value:
            yield from _calls_in(item)
    elif isinstance(value, Mapping):
        if isinstance(value.get("tool_calls"), list):
            yield from _calls_in(value["tool_calls"])
        elif isinstance(value.get("function"), Mapping):
            yield from _calls_in(value["function"])
        elif isinstance(value.get("name"), str):
            yield ToolCall(value["name"], _arguments(value))


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given: Any = next((call[name] for name in ("arguments", "parameters", "args") if name in call), {})
    value = parse(given) if isinstance(given, str) else given
    return value if isinstance(value, Mapping) else None


def _pythonic(text: str) -> Iterator[ToolCall]:
    """``[name(city="Paris"), …]``; anything but calls with literal keywords is none."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    calls = tree.elts if isinstance(tree, ast.List) else [tree]
    if all(isinstance(call, ast.Call) for call in calls):
        yield from (_called(call) for call in calls if isinstance(call, ast.Call))


def _called(call: ast.Call) -> ToolCall:
    try:
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        json.dumps(arguments)  # a set or a complex number is no argument that any schema allows
    except (ValueError, TypeError, RecursionError):
        return ToolCall(ast.unparse(call.func), None)
    return ToolCall(ast.unparse(call.func), None if call.args else arguments)


# What is expected


def _expected_calls(reference: Any) -> tuple[ToolCall, ...]:
    if reference is None or reference in ([], ""):
        return ()
    value = parse(reference) if isinstance(reference, str) else reference
    if isinstance(value, list) and not value:
        return ()
    calls = tuple(_calls_in(value)) if value is not NO_JSON else tuple(find_calls(str(reference)))
    if not calls:
        raise ValueError(
            f"the reference {short(reference)} is no tool call; give {{'name': ..., 'arguments': {{...}}}}, a list of "
            "these, the text with the call, or an empty list where no call is right"
        )
    return calls


def _tools_of(row: Row, column: str | None) -> Mapping[str, Any] | None:
    name = column or TOOLS_COLUMN
    if name not in row:
        if column is not None:
            raise ValueError(f"it has no column {column!r} with tools; its columns are {', '.join(row)}")
        return None
    value = parse(row[name]) if isinstance(row[name], str) else row[name]
    return _tools(value)


def _tools(value: Any) -> Mapping[str, Any]:
    """Function name -> schema of its arguments."""
    listed = value if isinstance(value, list | tuple) else []
    functions = [tool.get("function", tool) if isinstance(tool, Mapping) else tool for tool in listed]
    if not functions or not all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in functions):
        raise ValueError(
            f"{short(value)} are no tools; give a list as OpenAI's interface takes it: "
            "[{'type': 'function', 'function': {'name': ..., 'parameters': {...}}}]"
        )
    found = {f["name"]: _without_nulls(f.get("parameters") or {}) for f in functions}
    for schema in found.values():
        schema_validator(schema)
    return found


def _without_nulls(schema: Any) -> Any:
    """Without what is null: a dataset's columns of one type fill each tool with the others' fields."""
    if isinstance(schema, Mapping):
        return {name: _without_nulls(value) for name, value in schema.items() if value is not None}
    return [_without_nulls(item) for item in schema] if isinstance(schema, list) else schema
