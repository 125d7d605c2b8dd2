"""Metrics by their names and options, and functions that ask for completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, json_schema
from llmsearch_optuna.metrics.factories import FACTORIES
from llmsearch_optuna.metrics.scoring import MetricError

REFERENCES: dict[str, Any] = {
    "json_schema": {"type": "object"},
    "json_fields": {"a": 1},
    "tool_call": {"name": "f", "arguments": {}},
    "regex": "a+",
    "language": "words",
    "length_within": [1, 5],
}


@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - {"mean_logprob"}))  # which has no bounds
def test_every_metric_can_be_used_by_its_name_alone(name: str) -> None:
    references = [REFERENCES.get(name)] * 2
    metric = Metric.of(name).check(references, [{}, {}])
    assert (metric.name, metric.per_row, metric.bounds) == (name, True, (0.0, 1.0))
    completions = [Completion("", (), "length"), Completion('{"a": 1}', (5,), "eos")]
    texts = [completion.text for completion in completions]
    assert all(0 <= s <= 1 for s in metric.score_rows(texts, references, [{}, {}], completions=completions))
    json.dumps(dict(metric.description))
    assert hash(metric) == hash(Metric.of(name))


def test_options_are_those_of_the_metric() -> None:
    schema = {"type": "array"}
    assert Metric.of("json_schema", options={"schema": schema}).description == json_schema(schema=schema).description
    with pytest.raises(InputError, match=r"'json_schema' has no option 'shema'; did you mean 'schema'\?"):
        Metric.of("json_schema", options={"shema": schema})
    with pytest.raises(InputError, match="'rouge1' takes no options"):
        Metric.of("rouge1", options={"n": 1})
    with pytest.raises(InputError, match="for a metric that is given by its name"):
        Metric.of(json_schema(), options={"schema": schema})
    with pytest.raises(InputError, match="did you mean 'terminates'"):
        Metric.of("terminate")


def brevity(predictions: Sequence[str], references: Sequence[Any], completions: Sequence[Completion]) -> list[float]:
    return [1 / len(c.token_ids) if c.finish_reason == "eos" else 0.0 for c in completions]


def scorer(y_true: Any, y_pred: Any, completions: Sequence[Completion]) -> list[float]:
    return brevity(y_pred, y_true, completions)


@pytest.mark.parametrize("function", [brevity, scorer])
def test_a_function_that_names_completions_gets_them(function: Any) -> None:
    metric = Metric.of(function).check([None, None], [{}, {}])
    completions = [Completion("a b", (1, 2, 3, 4), "eos"), Completion("c", (1,), "length")]
    assert metric.score_rows(["A B", "C"], [None] * 2, [{}] * 2, completions=completions) == [0.25, 0.0]
    with pytest.raises(InputError, match="give completions="):
        metric.score_rows(["a"], [None], [{}])


def test_a_function_whose_only_texts_are_called_completions_gets_texts() -> None:
    def reward(completions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [float(len(text)) for text in completions]

    metric = Metric.of(reward).check(["ab"], [{}])
    assert metric.score_rows(["abc"], [None], [{}], completions=[Completion("abc")]) == [3.0]


def test_completions_stay_as_they_were_decoded_after_a_postprocess() -> None:
    def both(predictions: Sequence[str], references: Any, completions: Sequence[Completion]) -> list[float]:
        return [float(p == "A" and c.text == "a") for p, c in zip(predictions, completions, strict=True)]

    assert Metric.of(both).after(str.upper).score_rows(["a"], [None], [{}], completions=[Completion("a")]) == [1.0]


def test_a_corpus_metric_may_ask_for_completions_too() -> None:
    def tokens(predictions: Any, references: Any, completions: Sequence[Completion]) -> float:
        return sum(len(c.token_ids) for c in completions) / len(completions)

    metric = Metric.of(tokens).check([None], [{}])
    assert metric.per_row is False
    assert (
        metric.score_corpus(["a", "b"], [None] * 2, [{}] * 2, completions=[Completion("a", (1,)), Completion("b")])
        == 0.5
    )


def test_the_row_on_which_such_a_metric_fails_is_named() -> None:
    metric = Metric.of(brevity).check([None], [{}])
    completions = [Completion("a", (1,)), Completion("b", ())]
    with pytest.raises(MetricError, match="raised ZeroDivisionError.* on row 8"):
        metric.score_rows(["a", "b"], [None] * 2, [{}] * 2, completions=completions, numbers=[7, 8])
