"""Whatever is given as data, only the project's own errors come of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.dataset import read_rows
from llmsearch_optuna.task.task import Task

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)  # halves of characters too
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(max_size=8) | st.complex_numbers()
)
any_value = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(any_text | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers() | any_text, max_size=3)
    ),
    max_leaves=6,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def no_hub(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("there is no hub")


def only_input_errors(call: Callable[[], Any]) -> None:
    with contextlib.suppress(InputError):
        call()


@QUICK
@given(
    name=any_text | st.sampled_from(["", " ", "~nobody-here/x", "x" * 5000 + ".csv", "a\x00.csv", "**", "[", "/", "."])
)
def test_any_address_of_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", no_hub)
    monkeypatch.chdir(tmp_path)
    only_input_errors(lambda: read_rows(name))


@QUICK
@given(
    content=st.binary(max_size=60) | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")),
    name=st.sampled_from(
        ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet", "r.csv.gz", "r.json.xz", "r.csv.bz2", "r.zip", "r.csv.zip"]
    ),
)
def test_any_contents_of_a_file(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    only_input_errors(lambda: read_rows(tmp_path / name))


@QUICK
@given(value=json_values, lines=st.booleans())
def test_any_json_as_data(value: Any, lines: bool, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([value, value] if lines else value))
    only_input_errors(lambda: Task(tmp_path / "r.json", prompt="{prompt}", metric="exact_match").prepare())


@QUICK
@given(rows=any_value | st.lists(st.dictionaries(st.sampled_from(["prompt", "reference", 3]), any_value), max_size=4))
def test_any_rows(rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.load_dataset", no_hub)
    monkeypatch.chdir(tmp_path)
    only_input_errors(lambda: Task(rows, metric="exact_match").prepare())


def scorer(predictions: list[str], references: list[Any], rows: list[Any]) -> list[float]:
    return [0.5 for _ in predictions]


@QUICK
@given(
    cell=any_value,
    metric=st.sampled_from([scorer, "f1", "rouge1", "last_number", "json_valid", "sentence_bleu", "contains", "chrf"]),
    prompt=st.sampled_from([None, "{prompt}", "{reference}", [{"role": "user", "content": "{reference}"}]]),
)
def test_any_cell_of_a_table(cell: Any, metric: Any, prompt: Any) -> None:
    rows = [{"prompt": "p", "reference": "1"}, {"prompt": "q", "reference": cell}, {"prompt": cell, "reference": "2"}]
    for given_rows in (rows, rows[:2]):
        only_input_errors(lambda given_rows=given_rows: Task(given_rows, prompt=prompt, metric=metric).prepare())


@QUICK
@given(
    argument=st.sampled_from(
        [
            *("prompt", "reference", "metric", "direction", "postprocess", "system", "chat_template", "name"),
            *("max_prompt_tokens", "tokenizer_encode_args", "split", "subset", "limit", "metric_options"),
        ]
    ),
    value=any_value,
)
def test_any_value_of_an_argument(argument: str, value: Any) -> None:
    rows = [{"prompt": "p", "reference": "1"}, {"prompt": "q", "reference": "2"}]
    arguments = {"metric": "exact_match", argument: value}
    only_input_errors(lambda: Task.of(rows, **arguments).prepare())
