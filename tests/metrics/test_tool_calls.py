"""Tool calls: the forms of chat templates, and the four parts of the score."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, tool_call
from llmsearch_optuna.metrics.tool_calls import ToolCall, find_calls

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
CALL = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
FOUND = [ToolCall("get_weather", {"city": "Paris", "days": 3})]


def scored(metric: Metric, text: str, reference: Any = CALL, row: dict[str, Any] | None = None) -> float:
    (score,) = metric.score_rows([text], [reference], [row or {}])
    return score


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(CALL),
        f"I will look.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
        f"<think>hm</think><tool_call>{json.dumps(CALL)}",
        f"[TOOL_CALLS] [{json.dumps(CALL)}]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}',
        'get_weather[ARGS]{"city": "Paris", "days": 3}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
        '<function=get_weather>{"city": "Paris", "days": 3}</function>',
        '[get_weather(city="Paris", days=3)]',
        f"```json\n{json.dumps(CALL)}\n```",
        json.dumps({"tool_calls": [{"id": "1", "type": "function", "function": CALL}]}),
        json.dumps([{"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}]),
    ],
)
def test_every_form_of_a_call_is_read(text: str) -> None:
    assert find_calls(text) == FOUND
    assert scored(tool_call(tools=[WEATHER]), text) == 1.0


def test_several_calls_are_read() -> None:
    two = [ToolCall("a", {"x": 1}), ToolCall("b", {})]
    assert (
        find_calls('<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>\n<tool_call>{"name": "b"}</tool_call>')
        == two
    )
    assert find_calls('{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}') == two
    assert find_calls("[a(x=1), b()]") == two
    assert find_calls('[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{}') == two


@pytest.mark.parametrize("text", ["", "The weather is fine.", "{}", "[]", "3", '{"city": "Paris"}', "[1, 2]", "a + b"])
def test_a_text_without_a_call(text: str) -> None:
    assert find_calls(text) == []
    assert scored(tool_call(tools=[WEATHER]), text) == 0.0
    assert scored(tool_call(tools=[WEATHER]), text, []) == 1.0


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    for form in ("{}", "<tool_call>{}", "[TOOL_CALLS]{}", "f[ARGS]{}", "[f({})]", "<function=f>{}"):
        find_calls(form.replace("{}", text))


@pytest.mark.parametrize(
    ("call", "score"),
    [
        ({"name": "get_rain", "arguments": {"city": "Paris"}}, 0.25),
        ({"name": "get_weather", "arguments": {"days": 3}}, 0.5),
        ({"name": "get_weather", "arguments": "Paris"}, 0.5),
        ({"name": "get_time", "arguments": {"zone": "UTC"}}, 0.75),
        ({"name": "get_weather", "arguments": {"city": "Rome"}}, 0.75),
        ({"name": "get_weather", "arguments": {"city": "Paris"}}, 0.875),
        ({"name": "get_weather", "arguments": {"city": "Paris", "days": 3, "unit": "C"}}, 0.75 + 0.25 * 2 / 3),
        (CALL, 1.0),
    ],
)
def test_a_call_is_graded_in_four_parts(call: dict[str, Any], score: float) -> None:
    assert scored(tool_call(tools=[WEATHER, TIME]), json.dumps(call)) == pytest.approx(score)
    by_row = {"tools": json.dumps([WEATHER, TIME])}
    assert scored(tool_call(), json.dumps(call), CALL, by_row) == pytest.approx(score)
    assert scored(tool_call(column="mine"), json.dumps(call), CALL, {"mine": [WEATHER, TIME]}) == pytest.approx(score)


def test_calls_are_paired_in_any_order_and_superfluous_ones_cost() -> None:
    metric = tool_call(tools=[WEATHER, TIME])
    other = {"name": "get_time", "arguments": {"zone": "UTC"}}
    assert scored(metric, json.dumps([other, CALL]), [CALL, other]) == 1.0
    assert scored(metric, json.dumps([CALL]), [CALL, other]) == 0.5
    assert scored(metric, json.dumps([CALL, CALL]), [CALL]) == 0.5
    assert scored(metric, json.dumps(CALL), []) == 0.0


def test_without_tools_the_expected_function_is_the_only_one() -> None:
    assert scored(tool_call(), json.dumps(CALL)) == 1.0
    assert scored(tool_call(), json.dumps({"name": "other", "arguments": {}})) == 0.25


def test_what_is_no_call_or_tool_is_told() -> None:
    with pytest.raises(InputError, match="'tool_call' cannot judge row 0: the reference 'Paris' is no tool call"):
        tool_call().check(["Paris"], [{}])
    with pytest.raises(InputError, match="are no tools; give a list"):
        tool_call(tools=[{"nome": "x"}])
    with pytest.raises(InputError, match="no JSON schema"):
        tool_call(tools=[{"name": "f", "parameters": {"type": "objekt"}}])
    with pytest.raises(InputError, match="no column 'mine' with tools"):
        tool_call(column="mine").check([CALL], [{}])
