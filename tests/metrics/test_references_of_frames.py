"""What pandas makes of references: its own missing values, floats of whole numbers, columns called the same."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.references import plain_reference
from llmsearch_optuna.task.task import Task


@pytest.mark.parametrize("missing", [pd.NA, pd.NaT, None, float("nan")])
def test_each_kind_of_missing_value_is_none(missing: object) -> None:
    assert plain_reference(["x", missing]) == ["x"]
    frame = pd.DataFrame({"prompt": ["a", "b"], "reference": pd.Series(["x", missing], dtype=object)})
    with pytest.raises(InputError, match="row 1"):
        Task(frame, metric="exact_match").prepare()


def test_columns_that_are_called_the_same_are_refused() -> None:
    frame = pd.DataFrame([["a", "x", "y"]], columns=["prompt", "reference", "reference"])
    with pytest.raises(InputError, match="several columns of the DataFrame are called 'reference'"):
        Task(frame, metric="exact_match").prepare()


def test_whole_numbers_that_became_floats_are_told(caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "reference": [42.0, 7.0]})
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        Task(frame, metric="exact_match").prepare()
    assert "42.0, which are floats; a text that says 42 is not equal" in caplog.text


@pytest.mark.parametrize(("references", "metric"), [([42.5, 7.0], "exact_match"), ([42.0, 7.0], "last_number")])
def test_other_numbers_are_not_told(references: list[float], metric: str, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "reference": references})
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        Task(frame, metric=metric).prepare()
    assert "which are floats" not in caplog.text
