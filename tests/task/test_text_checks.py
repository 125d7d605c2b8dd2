from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.storage.study import open_study
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.task.dataset import read_rows
from llmsearch_optuna.task.task import Task

HALF = "cut \ud83d emoji"
ROW = {"prompt": "a", "reference": "b"}
ANY_TEXT = st.text(st.characters(codec=None))  # halves of characters too


@pytest.mark.parametrize(
    ("row", "described", "where"),
    [
        ({"prompt": HALF}, {}, "row 1, column 'prompt'"),
        ({"reference": HALF}, {}, "row 1, column 'reference'"),
        ({"reference": ["x", HALF]}, {}, "row 1, column 'reference'"),
        ({"other": {"deep": [HALF]}}, {}, "row 1, column 'other'"),
        ({HALF: 1}, {}, "row 1: the name of a column"),
        ({}, {"prompt": lambda row: HALF}, "row 0: its prompt"),
        ({}, {"reference": lambda row: HALF}, "row 0, reference"),
        ({}, {"system": HALF}, "system="),
    ],
)
def test_half_a_character_is_named_where_it_comes_in(row: Any, described: Any, where: str) -> None:
    with pytest.raises(InputError, match=f"{where}: the text holds half a character .* at place 4"):
        Task([ROW, {**ROW, **row}], metric="f1", **described).prepare()


def test_stop_strings_and_names_with_half_a_character_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stop="):
        GenerationParams.of({"max_new_tokens": 4, "stop": [HALF]})
    with pytest.raises(InputError, match="cannot name a study"):
        open_study(f"sqlite:///{tmp_path}/s.db", HALF, direction="maximize", fingerprint={})
    with pytest.raises(InputError, match="cannot name a study"):
        open_study(f"sqlite:///{tmp_path}/s.db", "a" * 600, direction="maximize", fingerprint={})


@given(st.dictionaries(ANY_TEXT, st.recursive(st.none() | st.floats() | ANY_TEXT, st.lists), max_size=2), ANY_TEXT)
def test_any_row_is_prepared_or_an_input_error(row: dict[str, Any], prompt: str) -> None:
    try:
        task = Task([{**row, "prompt": prompt, "reference": "b"}], metric="f1").prepare()
    except InputError as problem:
        str(problem).encode()
    else:
        json.dumps(dict(task.description)).encode()
        task.prompts[0].encode()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[1" + "0" * 5000 + "]"])
def test_json_that_is_nested_too_deep_or_too_large_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match="nested too deep|is no JSON"):
        read_rows(tmp_path / "rows.json")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "{b=" * 5000, "a = 1" + "0" * 5000])
def test_a_study_file_that_is_nested_too_deep_or_too_large_is_told(text: str) -> None:
    with pytest.raises(InputError, match="nested too deep|is no TOML"):
        parse_study_file(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 10**9),
        ("max_new_tokens", 10**12),
        ("length_penalty", 1e308),
        ("length_penalty", 10**400),
        ("temperature", 10**400),
        ("stop", [str(n) for n in range(10_000)]),
    ],
)
def test_numbers_beyond_reason_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}=.* is not possible"):
        GenerationParams.of({"max_new_tokens": 4, "do_sample": True, name: value})
