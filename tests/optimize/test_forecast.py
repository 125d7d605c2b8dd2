from __future__ import annotations

import inspect

import pytest

from llmsearch_optuna import forecast, search
from llmsearch_optuna.errors import InputError
from tests.synthetic import TextEngine, dataset, number_metric

NOT_FORECAST = {"timeout", "callbacks", "max_tokens", "storage", "study_name", "margin", "progress", "observer"}
"""What only says where a study is kept, when it is broken off, and how it is judged and shown."""


def test_a_forecast_takes_what_a_search_takes() -> None:
    ours, theirs = inspect.signature(forecast).parameters, inspect.signature(search).parameters
    assert set(theirs) - set(ours) == NOT_FORECAST
    assert [name for name in theirs if name in ours] == list(ours)
    assert {name: p.default for name, p in ours.items()} == {name: theirs[name].default for name in ours}


@pytest.mark.parametrize("wrong", [{"n_trials": 0}, {"sampler": "cma"}, {"pruner": "median"}, {"metric": None}])
def test_arguments_are_checked(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"metric": number_metric} | wrong
    with pytest.raises(InputError):
        forecast(TextEngine(), dataset(40), {"max_new_tokens": 5}, **arguments)
