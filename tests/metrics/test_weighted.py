"""The weighted mean of several metrics by row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from llmsearch_optuna import score, search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, json_schema
from llmsearch_optuna.metrics.scoring import Answers, MetricError
from llmsearch_optuna.metrics.weighted import WeightedMetric, weighted
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.checks import metric_name
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.task.task import Task
from tests.synthetic import TextEngine, dataset, number_metric

REFERENCES = ["the cat", "a dog"]
TEXTS = ['{"the": "cat"}', "a dog"]
ROWS: list[dict[str, Any]] = [{}, {}]


def halves(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [0.5] * len(predictions)


def scores(metric: Metric, texts: Sequence[str] = TEXTS) -> list[float]:
    return metric.score_rows(texts, REFERENCES, ROWS, completions=[Completion(t, (1,), "length") for t in texts])


def test_the_mean_divides_by_the_sum_of_the_weights() -> None:
    metric = Metric.of({"rouge1": 1.0, "json_valid": 0.5}).check(REFERENCES, ROWS)
    assert isinstance(metric, WeightedMetric)
    assert metric.name == "rouge1 + 0.5 json_valid"
    assert metric.bounds == (0.0, 1.0)
    assert scores(metric) == [pytest.approx(1.0), pytest.approx(2 / 3)]
    assert scores(Metric.of({"rouge1": 2, "json_valid": 1})) == scores(metric)


@given(
    st.dictionaries(
        st.sampled_from(["exact_match", "contains", "json_valid", "terminates", "f1"]), st.floats(1e-3, 1e3), min_size=1
    )
)
def test_it_is_the_mean_of_what_its_parts_say(weights: dict[str, float]) -> None:
    metric = weighted(weights)
    alone = {name: scores(Metric.of(name)) for name in weights}
    total = sum(weights.values())
    for place, found in enumerate(scores(metric)):
        assert found == pytest.approx(sum(weights[n] * alone[n][place] for n in weights) / total)
    parts = metric.score_parts(
        Answers(
            predictions=TEXTS,
            references=REFERENCES,
            rows=ROWS,
            completions=[Completion(t, (1,), "length") for t in TEXTS],
        )
    )
    assert parts == alone


def test_bounds_are_combined_or_unknown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llmsearch_optuna.metrics.weighted"):
        assert weighted({"sentence_chrf": 1, "f1": 3}).bounds == (0.0, pytest.approx(103 / 4))
    assert "different ranges (sentence_chrf from 0 to 100, f1 from 0 to 1)" in caplog.text
    assert weighted({halves: 1, "f1": 1}).bounds is None


def test_parts_may_be_functions_metrics_and_names_with_options() -> None:
    object_schema = {"type": "object"}
    named = weighted({"json_schema": 1, halves: 1}, {"json_schema": {"schema": object_schema}})
    made = weighted({json_schema(schema=object_schema): 1, halves: 1})
    assert scores(named) == scores(made) == [0.75, 0.25]
    assert named.description == made.description
    assert "built_in" not in named.description
    assert weighted({"f1": 1, "json_valid": 1}).description["built_in"] == "weighted"
    assert weighted({"f1": 1, "json_valid": 1}).description != weighted({"f1": 1, "json_valid": 2}).description


def test_a_postprocess_comes_before_every_part() -> None:
    metric = weighted({"exact_match": 1, "json_valid": 1}).after(lambda text: text[4:])
    assert metric.score_rows(["xxx the cat"], ["the cat"], [{}]) == [0.5]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "names no metric"),
        ({"f1": 0}, "the weight 0 of metric 'f1' must be a number above 0"),
        ({"f1": -1.0}, "must be a number above 0"),
        ({"f1": True}, "must be a number above 0"),
        ({"f1": "much"}, "must be a number above 0"),
        ({"f1": 1, "bleu": 1}, "bleu scores all rows at once"),
        ({"f1": 1, "jsonvalid": 1}, "did you mean 'json_valid'"),
        ({json_schema(schema={}): 1, "json_schema": 1}, "must have different names"),
    ],
)
def test_what_cannot_be_weighted_is_told(given: dict[Any, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Metric.of(given)


def test_a_function_that_turns_out_to_score_all_rows_is_told() -> None:
    def of_all(predictions: Sequence[str], references: Sequence[Any]) -> float:
        return 0.5

    with pytest.raises(InputError, match="of_all scores all rows at once"):
        weighted({of_all: 1, "f1": 1}).check(REFERENCES, ROWS)


def test_options_stand_under_the_name_of_their_metric() -> None:
    with pytest.raises(InputError, match="options for schema, which is none of the metrics json_schema, f1"):
        weighted({"json_schema": 1, "f1": 1}, {"schema": {}})
    with pytest.raises(InputError, match="the options 3 of metric 'f1' must be a table"):
        weighted({"f1": 1}, {"f1": 3})


def test_the_part_and_the_row_that_fail_are_named() -> None:
    def picky(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [1 / len(text) for text in predictions]

    metric = weighted({"f1": 1, picky: 1}).check(REFERENCES, ROWS)
    with pytest.raises(MetricError, match="metric 'picky' raised ZeroDivisionError.* on row 9"):
        metric.score_rows(["a", ""], REFERENCES, ROWS, numbers=[3, 9])


def test_trials_and_scores_tell_the_mean_of_every_part(tmp_path: Path) -> None:
    space = {"max_new_tokens": 9, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
    metric = {number_metric: 3.0, "terminates": 1.0}
    result = search(
        TextEngine(), dataset(40), space, holdout=0.3, metric=metric, n_trials=5, progress=False, replicates=2,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    alone = result.rescore(number_metric).set_index("number")["number_metric"]
    for trial in (t for t in result.trials if t.state.name == "COMPLETE"):
        parts = trial.user_attrs["metric_parts"]
        assert parts == {"number_metric": pytest.approx(alone[trial.number]), "terminates": 1.0}
        assert trial.value == pytest.approx((3 * parts["number_metric"] + parts["terminates"]) / 4)
    assert result.rescore("terminates")["terminates"].tolist() == [1.0] * len(alone)
    found = score(TextEngine(), dataset(6), {"max_new_tokens": 9}, metric=metric)
    assert found.score == pytest.approx((3 * found.parts["number_metric"] + 1) / 4)
    assert score(TextEngine(), dataset(6), {"max_new_tokens": 9}, metric=number_metric).parts == {}


def test_parts_of_records_that_another_process_scored_are_scored_again() -> None:
    task = Task.of(dataset(4), metric={number_metric: 1, "terminates": 1}).prepare()
    rows = SearchRows(task=task, order=(0, 1, 2, 3), objectives=Objectives())
    ended = ("eos", "eos", "length", "length")
    records = [RowRecord(n, 0, f"0.{n}", (1,), reason) for n, reason in enumerate(ended)]
    scored = rows.score(records)
    stored = [replace(r, parts=None) for r in scored[:2]] + scored[2:]
    assert rows.part_means(stored) == rows.part_means(scored)
    assert rows.part_means(scored) == {"number_metric": pytest.approx(0.15), "terminates": 0.5}


def test_study_files_weigh_metrics_and_name_options() -> None:
    head = '[study]\nname="x"\n[model]\nname="demo"\n[space]\nmax_new_tokens=1\n[data]\npath="demo"\n'
    text = head + 'metric={json_schema=1.0, f1=0.5}\nmetric_options={json_schema={schema={type="object"}}}\n'
    file = parse_study_file(text)
    assert metric_name(file) == "json_schema + 0.5 f1"
    task = search_arguments(file)["dataset"]
    assert (task.metric, task.metric_options) == (
        {"json_schema": 1.0, "f1": 0.5},
        {"json_schema": {"schema": {"type": "object"}}},
    )
    with pytest.raises(InputError, match="line 9.*has no option 'shema'"):
        parse_study_file(head + 'metric="json_schema"\nmetric_options={shema="x"}\n')
