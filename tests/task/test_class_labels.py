"""References that are numbers of classes are told before anything is decoded."""

from __future__ import annotations

import logging

import datasets
import pytest

from llmsearch_optuna.task.task import Task

NAMES = ["World", "Sports", "Business"]


def labelled() -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 1]}, features=features)


def warnings_of(task: Task, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING):
        task.read().prepare()
    return [message for message in caplog.messages if "class labels" in message]


def test_class_labels_as_references_are_told(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = warnings_of(Task(labelled(), prompt="{text}", reference="label", metric="exact_match"), caplog)
    assert "'label' are class labels, the numbers 0 to 2 of ['World', 'Sports', 'Business']" in said
    assert "reference=lambda row: NAMES[row['label']]" in said


@pytest.mark.parametrize("reference", [lambda row: NAMES[row["label"]], "text"])
def test_other_references_of_such_data_are_not(reference: object, caplog: pytest.LogCaptureFixture) -> None:
    task = Task(datasets.DatasetDict({"test": labelled()}), prompt="{text}", reference=reference, metric="exact_match")
    assert warnings_of(task, caplog) == []


def test_a_users_metric_knows_its_own_references(caplog: pytest.LogCaptureFixture) -> None:
    def scorer(predictions: list[str], references: list[int]) -> list[float]:
        return [0.5 for _ in predictions]

    assert warnings_of(Task(labelled(), prompt="{text}", reference="label", metric=scorer), caplog) == []
