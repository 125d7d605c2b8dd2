"""Spaces: what is searched, what is fixed, what Optuna stores, and what wrong descriptions are told."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.space.space import BRANCH, Space

HEAT = FloatDistribution(0.2, 1.2)
THREE: list[dict[str, Any]] = [
    {"max_new_tokens": 60, "do_sample": False, "repetition_penalty": FloatDistribution(1.0, 1.3)},
    {"max_new_tokens": 60, "do_sample": True, "temperature": HEAT, "repetition_penalty": FloatDistribution(1.0, 1.3)},
    {"max_new_tokens": 60, "do_sample": False, "num_beams": IntDistribution(2, 6), "length_penalty": HEAT},
]


def choices(*values: Any) -> CategoricalDistribution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns about lists; they are stored under labels here
        return CategoricalDistribution(values)


def test_distributions_are_searched_and_all_else_is_fixed() -> None:
    space = Space.of({"max_new_tokens": 64, "eos_token_id": [5, 7], "do_sample": True, "temperature": HEAT})
    assert space.fixed == {"max_new_tokens": 64, "eos_token_id": [5, 7], "do_sample": True}
    assert space.search_distributions == {"temperature": HEAT}
    values = space.suggest(FixedTrial({"temperature": 0.5}))
    assert values == {"max_new_tokens": 64, "eos_token_id": [5, 7], "do_sample": True, "temperature": 0.5}


def test_a_space_stays_a_space() -> None:
    space = Space.of(THREE)
    assert Space.of(space) is space


def test_branches_are_named_by_their_kind_and_stored_as_one_parameter() -> None:
    space = Space.of(THREE)
    assert [branch.label for branch in space.branches] == ["greedy", "sampling", "beam"]
    assert space.search_distributions[BRANCH] == CategoricalDistribution(["greedy", "sampling", "beam"])
    assert space.suggest(FixedTrial({BRANCH: "beam", "num_beams": 3, "length_penalty": 1.0})) == {
        "max_new_tokens": 60,
        "do_sample": False,
        "num_beams": 3,
        "length_penalty": 1.0,
    }


@pytest.mark.parametrize(
    ("branch", "label"),
    [
        ({}, "default"),
        ({"temperature": HEAT}, "default"),
        ({"num_beams": 1}, "greedy"),
        ({"num_beams": IntDistribution(1, 4)}, "beam"),
        ({"num_beams": 4, "do_sample": True}, "beam_sampling"),
        ({"do_sample": choices(True, False)}, "mixed"),
        ({"prompt_lookup_num_tokens": 3}, "assisted"),
    ],
)
def test_labels_say_how_a_branch_decodes(branch: dict[str, Any], label: str) -> None:
    assert Space.of(branch).branches[0].label == label


def test_repeated_labels_are_numbered() -> None:
    space = Space.of([{"do_sample": True, "top_k": 5}, {"do_sample": False}, {"do_sample": True, "top_k": 9}])
    assert [branch.label for branch in space.branches] == ["sampling_1", "greedy", "sampling_2"]


def test_branches_share_a_name_only_for_the_same_distribution() -> None:
    space = Space.of(
        [
            {"do_sample": False, "repetition_penalty": HEAT, "no_repeat_ngram_size": IntDistribution(0, 3)},
            {"do_sample": True, "repetition_penalty": HEAT, "no_repeat_ngram_size": IntDistribution(0, 4)},
        ]
    )
    assert set(space.search_distributions) == {
        BRANCH,
        "repetition_penalty",
        "greedy.no_repeat_ngram_size",
        "sampling.no_repeat_ngram_size",
    }
    stored = {BRANCH: "sampling", "repetition_penalty": 1.1, "sampling.no_repeat_ngram_size": 4}
    assert space.values(stored) == {"do_sample": True, "repetition_penalty": 1.1, "no_repeat_ngram_size": 4}


def test_lists_in_choices_are_stored_as_text_and_come_back_as_lists() -> None:
    stops = (None, "\n", ["\n", "\n\n"], ("a",))
    space = Space.of({"stop": choices(*stops)})
    (distribution,) = space.search_distributions.values()
    assert isinstance(distribution, CategoricalDistribution)
    assert distribution.choices == (None, '"\\n"', '["\\n", "\\n\\n"]', '["a"]')
    assert [space.values({"stop": label})["stop"] for label in distribution.choices] == list(stops)


def test_a_text_that_looks_like_a_list_is_not_that_list() -> None:
    space = Space.of({"stop": choices('["a"]', ["a"])})
    assert [point.values["stop"] for point in space.combinations()] == ['["a"]', ["a"]]


def test_dicts_with_tuples_as_keys_are_choices_too() -> None:
    biases = ({(1, 2): -5.0}, {(3,): 2.0})
    space = Space.of({"sequence_bias": choices(*biases)})
    assert [point.values["sequence_bias"] for point in space.combinations()] == list(biases)


def test_suggestions_of_a_real_study_are_decoded_and_stored_stably() -> None:
    space = Space.of([*THREE, {"max_new_tokens": 60, "num_beams": 2, "stop": choices(["a"], ["b", "c"])}])
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=4))
    for _ in range(25):
        trial = study.ask()
        values = space.suggest(trial)
        study.tell(trial, 1.0)
        assert space.values(trial.params) == values
        assert set(trial.params) <= set(space.search_distributions)
    assert {trial.params[BRANCH] for trial in study.trials} == {"greedy", "sampling", "beam_1", "beam_2"}


@given(st.integers(0, 2**32))
def test_random_points_are_encoded_back_to_themselves(seed: int) -> None:
    space = Space.of(
        [
            *THREE,
            {
                "max_new_tokens": IntDistribution(16, 128, log=True),
                "do_sample": True,
                "top_k": IntDistribution(5, 50, step=5),
                "top_p": FloatDistribution(0.1, 1.0, step=0.1),
                "epsilon_cutoff": FloatDistribution(1e-5, 1e-2, log=True),
                "stop": choices(None, "x", ["x", "y"]),
            },
        ]
    )
    point = space.at_random(np.random.default_rng(seed))
    assert space.encode(point.values) == point
    assert space.values(point.params) == point.values
    assert point.distributions.keys() == point.params.keys()
    for name, found in point.distributions.items():
        assert found._contains(found.to_internal_repr(point.params[name]))
    optuna.trial.create_trial(params=point.params, distributions=point.distributions, value=0.0)


def test_random_points_reach_every_branch_and_the_whole_range() -> None:
    space = Space.of(THREE)
    rng = np.random.default_rng(3)
    points = [space.at_random(rng) for _ in range(300)]
    assert {point.params[BRANCH] for point in points} == {"greedy", "sampling", "beam"}
    assert {point.values["num_beams"] for point in points if "num_beams" in point.values} == {2, 3, 4, 5, 6}
    heats = [point.values["temperature"] for point in points if "temperature" in point.values]
    assert min(heats) < 0.3
    assert max(heats) > 1.1


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 60, "do_sample": True, "temperature": 0.1, "repetition_penalty": 1.1},
        {"max_new_tokens": 61, "do_sample": True, "temperature": 0.5, "repetition_penalty": 1.1},
        {"max_new_tokens": 60, "do_sample": True, "temperature": 0.5},
        {"max_new_tokens": 60, "do_sample": True, "temperature": 0.5, "repetition_penalty": 1.1, "top_k": 3},
        {"max_new_tokens": 60, "do_sample": False, "num_beams": 2.5, "length_penalty": 1.0},
    ],
)
def test_values_outside_the_space_have_no_place_in_it(values: dict[str, Any]) -> None:
    assert Space.of(THREE).encode(values) is None


def test_one_and_true_are_different_values() -> None:
    space = Space.of({"early_stopping": choices(True, False, "never")})
    assert space.encode({"early_stopping": "never"}) is not None
    assert space.encode({"early_stopping": 1}) is None


def test_a_branch_can_be_asked_for() -> None:
    space = Space.of([{"do_sample": True, "temperature": HEAT}, {"do_sample": True, "temperature": HEAT}])
    values = {"do_sample": True, "temperature": 0.5}
    found = space.encode(values, "sampling_2")
    assert found is not None
    assert found.params == {BRANCH: "sampling_2", "temperature": 0.5}
    with pytest.raises(InputError, match="no branch 'beam'; its branches are sampling_1, sampling_2"):
        space.encode(values, "beam")


def test_a_grid_is_gone_through_once() -> None:
    space = Space.from_param_grid(
        [
            {"max_new_tokens": [8], "do_sample": [True], "temperature": [0.5, 1.0], "top_k": [5, 10, 0]},
            {"max_new_tokens": [8], "num_beams": [2, 3]},
        ]
    )
    points = list(space.combinations())
    assert space.is_exhaustible
    assert space.size() == len(points) == 8
    assert [space.point(place) for place in range(8)] == points
    for place in (-1, 8):
        with pytest.raises(IndexError):
            space.point(place)
    assert [point.values for point in points][:2] == [
        {"max_new_tokens": 8, "do_sample": True, "temperature": 0.5, "top_k": 5},
        {"max_new_tokens": 8, "do_sample": True, "temperature": 0.5, "top_k": 10},
    ]
    assert len({json.dumps(point.values, sort_keys=True) for point in points}) == 8
    assert all(space.encode(point.values) == point for point in points)


def test_steps_give_exact_decimals() -> None:
    space = Space.of({"do_sample": True, "top_p": FloatDistribution(0.1, 0.7, step=0.1)})
    assert [point.values["top_p"] for point in space.combinations()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert space.size() == 7


def test_a_range_without_steps_has_no_end() -> None:
    space = Space.of({"do_sample": True, "top_k": IntDistribution(1, 3), "temperature": HEAT})
    assert not space.is_exhaustible
    assert space.size() is None
    with pytest.raises(InputError, match="no end: temperature may take any value"):
        space.combinations()


def test_a_space_without_anything_searched_is_one_point() -> None:
    space = Space.of({"max_new_tokens": 5})
    assert [(point.params, point.values) for point in space.combinations()] == [({}, {"max_new_tokens": 5})]


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ({"temperature": 0.5}, "temperature=0.5 in the parameter grid must be a list"),
        ({"temperature": []}, "empty list"),
        ({"temperature": "abc"}, "must be a list"),
        ([], "empty list; give at least one dict"),
    ],
)
def test_a_broken_grid_is_refused(grid: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Space.from_param_grid(grid)


def test_a_numpy_grid_gives_plain_numbers() -> None:
    space = Space.from_param_grid({"do_sample": [True], "temperature": np.array([0.5, 1.0])})
    assert [type(point.values["temperature"]) for point in space.combinations()] == [float, float]


def test_tables_of_a_study_file_describe_ranges_and_choices() -> None:
    space = Space.from_tables(
        {
            "max_new_tokens": 48,
            "do_sample": True,
            "temperature": {"low": 1, "high": 2},
            "top_k": {"low": 5, "high": 50, "step": 5},
            "top_p": {"low": 0.5, "high": 1.0, "step": 0.1},
            "epsilon_cutoff": {"low": 1e-4, "high": 0.1, "log": True},
            "stop": {"choices": [["a"], ["b"]]},
        }
    )
    assert space.fixed == {"max_new_tokens": 48, "do_sample": True}
    found = space.search_distributions
    assert found["temperature"] == FloatDistribution(1, 2)
    assert found["top_k"] == IntDistribution(5, 50, step=5)
    assert found["top_p"] == FloatDistribution(0.5, 1.0, step=0.1)
    assert found["epsilon_cutoff"] == FloatDistribution(1e-4, 0.1, log=True)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"low": 2.0, "high": 1.0}, "the lower end 2.0 of its range is above the upper end 1.0"),
        ({"low": 1.0}, "high is missing; a searched value is"),
        ({"low": 1.0, "high": 2.0, "log2": True}, "log2 is unknown here; a searched value is"),
        ({"low": "a", "high": 2.0}, "'a' is no number"),
        ({"low": 0.5, "high": 1.0, "log": True, "step": 0.1}, "log"),
        ({"choices": 3}, "choices takes a list, and stands alone; a searched value is"),
        ({"choices": []}, "empty"),
    ],
)
def test_a_broken_table_is_refused(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Space.from_tables({"do_sample": True, "temperature": table})


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        ({"temprature": 0.5}, "Did you mean 'temperature'"),
        ({"temprature": HEAT}, "Did you mean 'temperature'"),
        ([{"top_p": 0.5}, {"topp": HEAT}], "branch 2 of the space: 'topp' is not a generation parameter"),
        ({"top_p": 1.5}, r"top_p=1\.5 is not possible"),
        ({"top_p": FloatDistribution(0.1, 1.5)}, r"top_p=1\.5 is not possible.*FloatDistribution\(high=1.5"),
        ({"temperature": FloatDistribution(0.0, 1.0)}, r"temperature=0\.0 is not possible"),
        ({"top_k": FloatDistribution(1, 50)}, "Use IntDistribution"),
        ({"temperature": [0.1, 0.5]}, "A list is one fixed value; to search its items write CategoricalDistribution"),
        ({"do_sample": choices(True, "yes")}, "do_sample='yes' is not possible"),
        ({"top_k": choices(5, 5.0)}, "the choices 5 and 5.0 are the same to Optuna"),
        ({"stop": choices(["a"], ("a",))}, "are the same to Optuna"),
        ({"stop": choices(["a"], object())}, "cannot be stored"),
        ({"num_beam_groups": IntDistribution(1, 3)}, "left transformers' core in version 5"),
        ([], "empty list"),
        (["greedy"], "branch 1 of the space: 'greedy' is no dict"),
        (3, "space=3 is no space"),
        ("sampling", "is no space"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(space: Any, complaint: str) -> None:
    if isinstance(space, list) and space and not isinstance(space[0], dict):
        space = [*space, {}]
    with pytest.raises(InputError, match=complaint):
        Space.of(space)


def test_an_upside_down_range_is_refused() -> None:
    distribution = FloatDistribution(0.1, 1.0)
    distribution.low = 2.0
    with pytest.raises(InputError, match=r"temperature: the lower end 2\.0 of its range is above the upper end 1\.0"):
        Space.of({"temperature": distribution})


def test_the_baseline_is_the_base_with_what_makes_outputs_comparable() -> None:
    fixed = {"max_new_tokens": 64, "stop": ["\n"], "eos_token_id": 7, "pad_token_id": 0, "generation_seed": 3}
    space = Space.of({**fixed, "do_sample": True, "repetition_penalty": 1.3, "temperature": HEAT})
    base = {"temperature": 0.6, "do_sample": False, "eos_token_id": 2}
    assert space.baseline_values(base) == {**base, **fixed}
    assert space.baseline_values(base, {"top_p": 0.9}) == {**base, **fixed, "top_p": 0.9}
    assert space.baseline_values(base, taken_over=space.fixed)["repetition_penalty"] == 1.3


def test_the_users_own_baseline_wins_over_the_space() -> None:
    space = Space.of({"max_new_tokens": 64, "do_sample": True, "temperature": HEAT})
    assert space.baseline_values({"top_p": 0.9}, {"do_sample": False, "max_new_tokens": 32}) == {
        "top_p": 0.9,
        "do_sample": False,
        "max_new_tokens": 32,
    }
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        space.baseline_values({}, {"temprature": 1.0})


def test_only_values_that_all_branches_fix_alike_are_in_the_baseline() -> None:
    assert Space.of(THREE).fixed == {"max_new_tokens": 60}
    assert Space.of(THREE).baseline_values({}) == {"max_new_tokens": 60}


def test_a_searched_length_gives_the_baseline_its_upper_bound() -> None:
    assert Space.of({"max_new_tokens": IntDistribution(16, 128)}).baseline_values({})["max_new_tokens"] == 128
    assert Space.of({"max_new_tokens": choices(16, 96, 32)}).baseline_values({})["max_new_tokens"] == 96
    branches = [{"max_new_tokens": 40}, {"max_new_tokens": IntDistribution(16, 30), "num_beams": 2}]
    assert Space.of(branches).baseline_values({})["max_new_tokens"] == 40


@pytest.mark.parametrize("space", [{"temperature": HEAT}, [{"max_new_tokens": 5}, {"num_beams": 2}], lambda trial: {}])
def test_without_max_new_tokens_there_is_no_baseline(space: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens is neither given nor searched"):
        Space.of(space).baseline_values({"temperature": 1.0})


def test_a_baseline_is_a_dict() -> None:
    with pytest.raises(InputError, match=r"baseline=\[1\] must be a dict of generation parameters"):
        Space.of({"max_new_tokens": 4}).baseline_values({}, [1])  # type: ignore[arg-type]


def test_a_baseline_may_bring_the_length() -> None:
    assert Space.of({"temperature": HEAT}).baseline_values({}, {"max_new_tokens": 9})["max_new_tokens"] == 9


def by_run(trial: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"max_new_tokens": trial.suggest_int("max_new_tokens", 10, 50), "eos_token_id": [3, 4]}
    if trial.suggest_categorical("strategy", ["beam", "sampling"]) == "beam":
        return {**values, "num_beams": trial.suggest_int("num_beams", 2, 4)}
    return {**values, "do_sample": True, "temperature": trial.suggest_float("temperature", 0.1, 1.0, log=True)}


def test_a_function_is_a_space() -> None:
    space = Space.of(by_run)
    assert space.branches == ()
    assert not space.is_exhaustible
    assert space.fixed == {"eos_token_id": [3, 4]}
    assert space.baseline_values({})["max_new_tokens"] == 50
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        assert space.suggest(trial) == space.values(trial.params)
        study.tell(trial, 0.0)


def test_random_points_of_a_function_can_be_stored() -> None:
    point = Space.of(by_run).at_random(np.random.default_rng(1))
    optuna.trial.create_trial(params=point.params, distributions=point.distributions, value=0.0)
    assert Space.of(by_run).values(point.params) == point.values


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda trial: {"temprature": trial.suggest_float("t", 0.1, 1.0)}, "Did you mean 'temperature'"),
        (lambda trial: {"temperature": trial.suggest_float("t", -1.0, -0.5)}, "temperature=-"),
        (lambda trial: None, "must return a dict"),
        (lambda trial: {"temperature": HEAT}, "call trial.suggest_"),
    ],
)
def test_a_wrong_function_is_refused_before_anything_runs(function: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Space.of(function)


def test_a_function_cannot_be_a_grid() -> None:
    with pytest.raises(InputError, match="cannot be gone through as a grid"):
        Space.of(by_run).combinations()


def test_descriptions_are_json_and_tell_spaces_apart() -> None:
    def description(space: Any) -> str:
        return json.dumps(Space.of(space).description, sort_keys=True)

    one = {"max_new_tokens": 8, "do_sample": True, "temperature": HEAT, "stop": choices(["a"], ["b"])}
    assert description(one) == description(dict(reversed(one.items())))
    changed: list[Any] = [
        {**one, "max_new_tokens": 9},
        {**one, "temperature": FloatDistribution(0.2, 1.3)},
        {**one, "temperature": FloatDistribution(0.2, 1.2, log=True)},
        {**one, "stop": choices(["a"], ["c"])},
        [one, {"max_new_tokens": 8}],
        by_run,
    ]
    assert len({description(space) for space in [one, *changed]}) == len(changed) + 1
