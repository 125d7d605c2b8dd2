"""What is to be tried first runs in full after the baseline and greedy, is learned from, and counts in the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import forecast, search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.search_result import SearchResult
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = [
    {"max_new_tokens": 9, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
    {"max_new_tokens": 9, "num_beams": 3},
]
BASELINE = {"do_sample": True, "temperature": 0.7}  # the best there is: everything else is pruned if it may be
WORST = {"do_sample": True, "temperature": 2.0}
OUTSIDE = {"do_sample": True, "temperature": 1.9, "top_p": 0.5}


def run(tmp_path: Path, **options: Any) -> SearchResult:
    given = {"n_trials": 12, "baseline": BASELINE, "study_name": "s", **options}
    return search(
        TextEngine(), dataset(60), SPACE, metric=number_metric, progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", **{"holdout": 0.3} | given,
    )  # fmt: skip


def roles(result: SearchResult) -> list[str]:
    return [t.user_attrs["role"] for t in result.trials]


def test_they_run_in_full_right_after_the_first_two_trials(tmp_path: Path) -> None:
    result = run(tmp_path, try_first=[WORST, OUTSIDE])
    assert roles(result)[:5] == ["baseline", "greedy", "try_first", "try_first", "searched"]
    tried = result.trials[2:4]
    assert [t.state.name for t in tried] == ["COMPLETE", "COMPLETE"]
    assert all(t.user_attrs["rows"].split(" of ")[0] == t.user_attrs["rows"].split(" of ")[1] for t in tried)
    assert any(t.state.name == "PRUNED" for t in result.trials[4:])  # others as bad as these are pruned
    # TPE learns from the one that is a point of the space.
    assert tried[0].params == {"branch": "sampling", "temperature": 2.0}
    assert tried[1].params == {}
    assert tried[1].user_attrs["params"] == {**tried[1].user_attrs["params"], **OUTSIDE, "max_new_tokens": 9}
    assert "try_first" in set(result.trials_dataframe()["role"])


def test_what_another_trial_tries_before_is_not_tried_again(tmp_path: Path) -> None:
    result = run(tmp_path, try_first=[BASELINE, {"do_sample": False}, WORST, dict(WORST)], n_trials=4)
    assert roles(result) == ["baseline", "greedy", "try_first", "searched"]


def test_they_count_in_the_study_only_where_they_are_given(tmp_path: Path) -> None:
    without = run(tmp_path, n_trials=3)
    assert "try_first" not in without.opened.records.fingerprint()
    assert [t.params for t in run(tmp_path, n_trials=3, try_first=[]).trials] == [t.params for t in without.trials]
    with pytest.raises(StudyError, match="try_first"):
        run(tmp_path, n_trials=3, try_first=[WORST])
    first = run(tmp_path, n_trials=3, try_first=[WORST], study_name="other")
    again = run(tmp_path, n_trials=6, try_first=[WORST], study_name="other")
    assert [t.user_attrs["params"] for t in again.trials[:3]] == [t.user_attrs["params"] for t in first.trials]


def test_a_whole_grid_counts_them_once(tmp_path: Path) -> None:
    space = {"max_new_tokens": 9, "num_beams": 3}
    result = search(
        TextEngine(), dataset(20), space, metric=number_metric, progress=False, sampler="grid", study_name="g",
        holdout=0.3, storage=f"sqlite:///{tmp_path}/g.db", try_first=[{"num_beams": 2}],
    )  # fmt: skip
    beams = [t.user_attrs["params"].get("num_beams", 1) for t in result.trials]
    assert sorted(beams) == sorted(set(beams))
    assert 2 in beams


def test_a_forecast_begins_with_them_too() -> None:
    found = forecast(
        TextEngine(), dataset(40), SPACE, metric=number_metric, baseline=BASELINE, try_first=[WORST], n_trials=6
    )
    assert found.text


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([{"temprature": 1.0}], r"try_first\[0\]: .*temprature"),
        ([WORST, {"temperature": -1}], r"try_first\[1\]: .*temperature"),
        ([3], r"try_first\[0\]=3 must be a dict"),
        (WORST, "must be a list of dicts"),
    ],
)
def test_what_cannot_be_tried_is_told(tmp_path: Path, given: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        run(tmp_path, try_first=given)
