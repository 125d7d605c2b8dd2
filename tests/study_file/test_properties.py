"""Whatever a study file holds, only the project's own errors come of it."""

from __future__ import annotations

import contextlib
from typing import Any

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.redaction import redacted_study_file
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes, with_defaults
from llmsearch_optuna.study_file.model import TABLES, study_file_text
from llmsearch_optuna.study_file.parse import parse_study_file

QUICK = settings(max_examples=150, deadline=None)
texts = st.text(max_size=12) | st.sampled_from(
    ["tokens", "terminates", "vllm:x", "http://", "demo", "all", "cross", "\x1b]0;t"]
)
scalars = st.booleans() | st.integers() | st.floats() | texts | st.datetimes() | st.just(10**30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
OPTIONS = [(table, key) for table, section in TABLES.items() for key in section.model_fields]
PARAMETERS = (
    *(
        "temperature",
        "top_k",
        "num_beams",
        "max_new_tokens",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
    ),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_sequence_breakers", "xtc_probability", "xtc_threshold"),
    *("length_penalty", "do_sample", "mirostat_mode", "generation_seed", "bad_words_ids", "sequence_bias", "nope"),
)
BASE: dict[str, Any] = {
    "study": {"name": "s"},
    "model": {"name": "x"},
    "data": {"path": "x.jsonl", "metric": "f1"},
    "space": {"max_new_tokens": 5, "temperature": {"low": 0.1, "high": 1.0}},
}


def read(text: str) -> None:
    with contextlib.suppress(InputError):
        file = parse_study_file(text)
        search_arguments(file)
        again = parse_study_file(study_file_text(file))
        assert again == file
        with_defaults(file)
    redacted_study_file(text)


@QUICK
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    read(text)


@QUICK
@given(option=st.sampled_from(OPTIONS), value=values)
def test_any_value_of_an_option(option: tuple[str, str], value: Any) -> None:
    table, key = option
    read(tomli_w.dumps({**BASE, table: {**BASE[table], key: value}}))


@QUICK
@given(
    table=st.sampled_from(["space", "baseline", "baselines", "constraints", "try_first", "data", "prompts", "x"]),
    value=values,
)
def test_any_value_of_a_table(table: str, value: Any) -> None:
    read(tomli_w.dumps({**BASE, table: value}))


@QUICK
@given(
    name=st.sampled_from(PARAMETERS),
    value=values
    | st.fixed_dictionaries({"low": scalars, "high": scalars}, optional={"step": scalars, "log": st.booleans()})
    | st.fixed_dictionaries({"choices": st.lists(values, max_size=3)}),
    place=st.sampled_from(["space", "baseline", "baselines", "try_first"]),
)
def test_any_value_of_a_parameter(name: str, value: Any, place: str) -> None:
    table: Any = {"max_new_tokens": 5, name: value}
    table = {"baselines": {"a": table}, "try_first": [table]}.get(place, table)
    read(tomli_w.dumps({**BASE, place: table}))


@QUICK
@given(st.dictionaries(texts | st.sampled_from(["terminates", "f1", "tokens"]), scalars, max_size=2))
def test_any_condition_on_the_command_line(limits: dict[str, Any]) -> None:
    file = parse_study_file(tomli_w.dumps(BASE))
    with contextlib.suppress(InputError):
        Changes(constraints={name: str(limit) for name, limit in limits.items()}).apply(file)
