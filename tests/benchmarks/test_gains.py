"""The generated data are what the generator gives, and the studies can be run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llmsearch_optuna.metrics import json_fields, tool_call
from llmsearch_optuna.study_file.parse import read_study_file
from tests.benchmarks import gains, gains_data


@pytest.mark.parametrize("name", gains_data.DATA)
def test_the_generated_rows_are_those_that_are_kept(name: str) -> None:
    text = (gains_data.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    assert gains_data.lines(name) == text
    assert len(set(text.splitlines())) == gains_data.ROWS


@pytest.mark.parametrize(
    ("name", "column", "metric"), [("records", "record", json_fields), ("tool_calls", "call", tool_call)]
)
def test_a_reference_is_right_by_its_own_metric(name: str, column: str, metric: object) -> None:
    rows = [json.loads(line) for line in gains_data.lines(name).splitlines()[:50]]
    references = [row[column] for row in rows]
    scores = metric().score_rows(references, references, rows)  # type: ignore[operator]
    assert list(scores) == [1.0] * 50


@pytest.mark.parametrize("study", [study.file for study in gains.STUDIES])
def test_each_study_names_what_is_in_use(study: str) -> None:
    file = read_study_file(gains.FOLDER / f"{study}.toml")
    assert file.baseline == "card"
    assert set(file.baselines) == {"greedy", "card"}


@pytest.mark.parametrize(("role", "mean"), [("greedy", 0.6), ("searched", 0.5)])
def test_greedy_has_a_mean_where_it_has_won_too(role: str, mean: float) -> None:
    verdict = SimpleNamespace(winner_mean=0.6, baselines=[SimpleNamespace(name="greedy", difference=0.1)])
    if role == "greedy":
        verdict.baselines = []
    result = SimpleNamespace(best_trial=SimpleNamespace(user_attrs={"role": role}), verdict=verdict)
    outcome = gains.Outcome(result, tokens=0)  # type: ignore[arg-type]
    assert outcome.mean_of("greedy") == pytest.approx(mean)
    assert outcome.mean_of("generation_config.json") is None
