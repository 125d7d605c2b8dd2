"""The number of samples as something that is searched: from Python, a study file and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from typer.testing import CliRunner

from llmsearch_optuna import forecast, score
from llmsearch_optuna.cli.app import app
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.study_file.template import new_study_file
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric

SAMPLED: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "temperature": FloatDistribution(0.1, 1.5)}


def choices(space: Any) -> list[Any]:
    return [b.searched["samples"].choices if "samples" in b.searched else None for b in Space.of(space).branches]


@pytest.mark.parametrize("given", [[1, 5], (1, 5), range(1, 6, 4), CategoricalDistribution([1, 5])])
def test_a_list_in_a_space_is_searched(given: Any) -> None:
    assert choices({**SAMPLED, "samples": given}) == [(1, 5)]
    assert choices([{"max_new_tokens": 5}, {**SAMPLED, "samples": given}]) == [None, (1, 5)]


def test_a_list_of_one_is_a_value_and_other_lists_are_refused() -> None:
    assert Space.of({**SAMPLED, "samples": [3]}).fixed["samples"] == 3
    for wrong in ([], [0, 2], [1, 1], [1.5, 2], ["a", "b"], [True, 2], [[1, 2], [3]]):
        with pytest.raises(InputError, match="samples"):
            Space.of({**SAMPLED, "samples": wrong})


def test_an_argument_with_several_numbers_is_searched_where_something_is_sampled(tmp_path: Path) -> None:
    space = [
        {"max_new_tokens": 5},
        SAMPLED,
        {**SAMPLED, "top_p": 0.9, "samples": 2},
        {"max_new_tokens": 5, "num_beams": 2, "do_sample": True},
    ]
    assert choices(Space.of(space).with_samples([1, 5], {})) == [None, (1, 5), None, (1, 5)]
    assert choices(Space.of(space).with_samples([1, 5], {"do_sample": True})) == [(1, 5), (1, 5), None, (1, 5)]
    found = run(tmp_path, space=SAMPLED, samples=[2, 5], baseline={"do_sample": True, "temperature": 0.3}, n_trials=8)
    drawn = {
        t.user_attrs["role"]: {
            u.user_attrs["params"].get("samples", 1)
            for u in found.trials
            if u.user_attrs["role"] == t.user_attrs["role"]
        }
        for t in found.trials
    }
    assert drawn == {"baseline": {2}, "greedy": {1}, "searched": {2, 5}}
    plain = run(
        tmp_path,
        name="plain",
        space={**SAMPLED, "samples": [2, 5]},
        samples=2,
        n_trials=8,
        baseline={"do_sample": True, "temperature": 0.3},
    )
    assert [t.value for t in plain.trials] == [t.value for t in found.trials], "both ways are one search"
    with pytest.raises(StudyError, match="samples"):
        run(tmp_path, space=SAMPLED, samples=[2, 6], baseline={"do_sample": True, "temperature": 0.3}, n_trials=9)


@pytest.mark.parametrize("wrong", [[], [0, 1], [1, 1], [2, 1025], ["a"], [1.5, 2], [True, 2], "many", {1: 2}])
def test_other_arguments_are_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples=.* must be a whole number from 1 to 1,024, or a list of such"):
        run(tmp_path, space=SAMPLED, samples=wrong)


def test_a_function_says_itself_what_it_searches_and_a_score_draws_one_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"let it return 'samples': trial.suggest_categorical\('samples', \[1, 5\]\)"):
        run(tmp_path, space=lambda trial: {"max_new_tokens": 5, "do_sample": True}, samples=[1, 5])
    with pytest.raises(InputError, match="score draws one number of samples; search takes several"):
        score(TextEngine(), dataset(4), {"max_new_tokens": 5}, metric=number_metric, samples=[1, 5])
    assert forecast(TextEngine(), dataset(40), SAMPLED, metric=number_metric, samples=[1, 5], n_trials=4).tokens.low > 0


def test_the_least_number_is_enough_for_the_aggregate(tmp_path: Path) -> None:
    found = run(tmp_path, space=SAMPLED, samples=[4, 6], aggregate="pass@4", n_trials=4)
    assert {t.user_attrs["params"].get("samples", 1) for t in found.trials} <= {1, 4, 6}
    with pytest.raises(InputError, match="takes at least 4 samples"):
        run(tmp_path, space=SAMPLED, samples=[2, 6], aggregate="pass@4")


def test_a_study_file_and_the_command_line_say_the_same() -> None:
    text = new_study_file("x").replace("# samples = 1\n", "samples = [1, 4, 8]\n")
    assert "samples = [1, 4, 8]" in text
    file = parse_study_file(text)
    assert search_arguments(file)["samples"] == [1, 4, 8]
    changed = Changes(samples=[2, 3]).apply(parse_study_file(new_study_file("x")))
    assert search_arguments(changed)["samples"] == [2, 3]
    with pytest.raises(InputError, match="samples"):
        parse_study_file(text.replace("[1, 4, 8]", "[0, 4]"))
    in_space = new_study_file("x").replace("max_new_tokens = ", "samples = [1, 5]\nmax_new_tokens = ", 1)
    assert (1, 5) in choices(Space.from_tables(parse_study_file(in_space).space))


def test_the_flag_takes_numbers_with_commas(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(new_study_file("x"), encoding="utf-8")
    for given, told in (("a,2", "must be a whole number, or several with commas between"), ("0,4", "samples")):
        shown = CliRunner().invoke(app, ["run", str(path), "--samples", given])
        assert shown.exit_code != 0
        assert told in f"{shown.output}{shown.exception}"
