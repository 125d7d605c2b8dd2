"""A file that changed between two sessions of a study: the rows are named, and the study waits as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import run, signature
from tests.synthetic import TextEngine, dataset

Rows = list[dict[str, Any]]


def changed(row: int, **cells: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [{**r, **cells} if n == row else r for n, r in enumerate(rows)]


CHANGES: list[tuple[Callable[[Rows], Rows], dict[str, Any], str]] = [
    (changed(3, prompt="another"), {}, "row 3 has another prompt"),
    (changed(5, answer="7"), {}, "row 5 has another reference"),
    (lambda rows: rows[:-2], {}, "rows 22, 23 are gone"),
    (lambda rows: [*rows, {"prompt": "one more", "answer": "x"}], {}, "row 24 is new"),
    (lambda rows: [rows[1], rows[0], *rows[2:]], {}, "rows 0, 1 have another prompt"),
    (lambda rows: rows, {"prompt": "Say: {prompt}"}, "rows 0, 1, 2, 3, 4, 5, 6, 7 and 16 more have another prompt"),
    (lambda rows: [{**r, "note": 1} for r in rows], {}, "have other columns"),
]


@pytest.mark.parametrize(("change", "asked", "said"), CHANGES)
def test_a_file_that_changed_is_refused_with_its_rows(
    tmp_path: Path, change: Callable[[Rows], Rows], asked: dict[str, Any], said: str
) -> None:
    file = tmp_path / "rows.jsonl"

    def write(rows: Rows) -> None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def go(engine: TextEngine, n_trials: int, **more: Any) -> Any:
        return run(tmp_path, engine, dataset=file, reference="answer", n_trials=n_trials, **more)

    write(dataset(24))
    before = signature(go(TextEngine(), 2))
    write(change(dataset(24)))
    engine = TextEngine()
    with pytest.raises(StudyError, match=rf"(?s)started with something else.*that is: .*{said}"):
        go(engine, 3, **asked)
    assert engine.calls == []
    assert signature(load_result(f"{tmp_path}/s.db")) == before
    write(dataset(24))
    assert len(go(TextEngine(), 3).trials) == 3


def test_a_file_that_a_metric_reads_counts_by_what_is_in_it(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')

    def go(n_trials: int) -> Any:
        given = {"metric": "json_schema", "metric_options": {"schema": str(schema)}}
        return run(tmp_path, dataset=dataset(24), n_trials=n_trials, **given)

    go(2)
    schema.write_text('{"type": "array"}')
    with pytest.raises(StudyError, match=r"data\.metric"):
        go(3)
    schema.write_text('{ "type":  "object" }')
    assert len(go(3).trials) == 3
