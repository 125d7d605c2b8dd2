"""Metrics of JSON answers; schemas are judged by the jsonschema package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, json_fields, json_schema, json_valid
from llmsearch_optuna.metrics.json_answers import NO_JSON, parse

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def scored(metric: Metric, text: str, reference: Any = None, row: dict[str, Any] | None = None) -> float:
    (score,) = metric.score_rows([text], [reference], [row or {}])
    return score


@given(JSON)
def test_every_json_value_is_valid(value: Any) -> None:
    assert scored(json_valid(), f" {json.dumps(value)}\n") == 1.0
    assert scored(json_valid(), json.dumps(value) + "]") == 0.0


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", '{"a": NaN}', "[Infinity]", '{"a": 1} so', "[" * 100_000, "1" * 5000, "```json\n{}\n```"],
)
def test_what_is_no_json_scores_nothing(text: str) -> None:
    assert scored(json_valid(), text) == 0.0


def test_null_is_json() -> None:
    assert parse("null") is None
    assert parse("nul") is NO_JSON


@pytest.mark.parametrize("text", ['Here:\n```json\n{"a": 1}\n```\nDone.', '```\n{"a": 1}', '{"a": 1}'])
def test_a_code_block_counts_where_it_may(text: str) -> None:
    assert scored(json_valid(fenced=True), text) == 1.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada"}', 0.0),
        ('{"name": "Ada", "age": 36, "born": 1815}', 0.0),
        ('{"name": "Ada", "age": 36', 0.0),
    ],
)
def test_a_schema_is_an_option_a_file_a_column_or_the_reference(text: str, score: float, tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    assert scored(json_schema(schema=PERSON), text) == score
    assert scored(json_schema(schema=file), text) == score
    assert scored(json_schema(schema=str(file)), text) == score
    assert scored(json_schema(column="schema"), text, None, {"schema": json.dumps(PERSON)}) == score
    assert scored(json_schema(), text, PERSON) == score


def test_a_schema_that_is_none_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schema=.*no JSON schema: 'objekt' is not valid"):
        json_schema(schema={"type": "objekt"})
    with pytest.raises(InputError, match=r"schema='.*none\.json' cannot be read"):
        json_schema(schema=tmp_path / "none.json")
    with pytest.raises(InputError, match="'json_schema' cannot judge row 1: it has no column 'schema'"):
        json_schema(column="schema").check([None, None], [{"schema": PERSON}, {"other": 1}])
    with pytest.raises(InputError, match="row 0: 'a text' is no JSON schema; give schema="):
        json_schema().check(["a text"], [{}])
    with pytest.raises(InputError, match="not both"):
        json_schema(schema=PERSON, column="schema")


def test_no_reference_of_a_schema_leaves_the_machine() -> None:
    remote = json_schema(schema={"$ref": "https://example.com/schema.json"})
    with pytest.raises(Exception, match="example.com"):
        remote.score_rows(["{}"], [None], [{}])


def test_a_schema_counts_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    assert json_schema(schema=file).description == json_schema(schema=PERSON).description
    assert json_schema(schema=PERSON).description != json_schema().description


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ({"name": "Ada  Lovelace", "born": {"year": 1815.0, "city": "London"}, "tags": ["a", "b"]}, 1.0),
        ({"name": "Ada", "born": {"year": 1815, "city": "London"}, "tags": ["a", "b"]}, 0.75),
        ({"name": "Ada Lovelace", "born": 1815, "tags": ["b", "a"], "more": 1}, 0.25),
        ({"born": {"year": True}}, 0.0),
        ([], 0.0),
    ],
)
def test_fields_are_counted_by_their_paths(answer: Any, score: float) -> None:
    reference = {"name": "Ada Lovelace", "born": {"year": 1815, "city": "London"}, "tags": ["a", "b"]}
    for form in (reference, json.dumps(reference), [{"name": "nobody", "no": 1}, reference]):
        assert scored(json_fields().check([form], [{}]), json.dumps(answer), form) == score


@given(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=4))
def test_the_reference_itself_has_every_field_right(reference: dict[str, Any]) -> None:
    assert scored(json_fields(), json.dumps(reference), reference) == 1.0


@pytest.mark.parametrize("reference", ["no object", {}, None, "[1]"])
def test_a_reference_without_fields_is_told(reference: Any) -> None:
    with pytest.raises(InputError, match="'json_fields' cannot judge row 0: the reference .* is no object with fields"):
        json_fields().check([reference], [{}])
