"""Study files: what they mean, and that every mistake is answered with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.study_file.checks import check_space
from llmsearch_optuna.study_file.model import DEMO_STUDY
from llmsearch_optuna.study_file.parse import parse_study_file, read_study_file
from tests.study_file.texts import TEXT

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


def test_values_are_those_of_the_file_and_none_where_it_is_silent():
    file = parse_study_file(TEXT)
    assert (file.study.n_trials, file.study.holdout, file.study.seed) == (12, None, None)
    assert (file.data.direction, file.baseline) == (None, None)


def test_space_is_what_python_would_say():
    from optuna.distributions import FloatDistribution, IntDistribution

    same = Space.of(
        [
            {"max_new_tokens": 40, "do_sample": True, "temperature": FloatDistribution(0.2, 1.2, log=True)},
            {"max_new_tokens": 40, "num_beams": IntDistribution(2, 6), "stop": ["\n"]},
        ]
    )
    assert check_space(parse_study_file(TEXT)).description == same.description


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "rouge1"', "", "s.toml, line 8: data.metric is missing"),
        ("prompt =", "promt =", "s.toml, line 10: data.promt is not a key here; did you mean 'prompt'?"),
        ("n_trials = 12", 'n_trials = "12"', "s.toml, line 3: study.n_trials = '12': input should be a valid integer"),
        ("n_trials = 12", "n_trials = 0", "s.toml, line 3: study.n_trials = 0: input should be greater than"),
        ("n_trials = 12", "holdout = 1.0", "s.toml, line 3: study.holdout = 1.0: input should be less than 1"),
        ("n_trials = 12", 'holdout = "half"', "s.toml, line 3: study.holdout = 'half': input should be"),
        (
            "n_trials = 12",
            'sampler = "cma"',
            "line 3: study.sampler = 'cma': input should be 'tpe', 'random' or 'grid'",
        ),
        ("[model]", "[modle]", "s.toml, line 5: modle is not a key here; did you mean 'model'?"),
        ("temperature", "temprature", "line 16: branch 1 of the space: 'temprature' is not a generation"),
        ("high = 1.2", "high = 0.1", "s.toml, line 16: temperature: the lower end 0.2"),
        ("high = 6", "hgh = 6", "s.toml, line 20: num_beams"),
        ("40\nnum_beams", "-1\nnum_beams", "s.toml, line 19: branch 2 of the space: max_new_tokens=-1"),
        ("n_trials = 12", "n_trials = ", "s.toml is no TOML: Invalid value (at line 3"),
    ],
)
def test_mistakes_are_named_with_their_place(old, new, message):
    with pytest.raises(InputError) as caught:
        parse_study_file(TEXT.replace(old, new, 1), name="s.toml")
    assert message in str(caught.value)


def test_an_empty_space_is_refused():
    head = TEXT[: TEXT.index("[[space]]")]
    with pytest.raises(InputError, match="the space is empty"):
        parse_study_file(head + "[space]\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no study file .*nowhere.toml"):
        read_study_file(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_the_studies_of_the_project_can_be_read(path):
    file = read_study_file(path)
    assert file.study.name == path.stem
    check_space(file)


def test_the_demo_is_the_quickstart_and_searches_the_demos_preset():
    from llmsearch_optuna import presets

    quickstart = next(path for path in STUDIES if path.stem == "quickstart")
    assert DEMO_STUDY.read_text(encoding="utf-8") == quickstart.read_text(encoding="utf-8")
    file = read_study_file(quickstart)
    assert check_space(file).description == Space.of(presets.demo()).description
    assert file.study.n_trials >= 20


def test_what_only_search_would_find_is_named_with_its_line_as_well():
    with pytest.raises(InputError, match=r"study file, line 24: 'temprature' is not a generation parameter"):
        parse_study_file(TEXT + "\n[baseline]\ntemprature = 1.0\n")
    with pytest.raises(InputError, match=r"study file, line 24: temperature=-1 is not possible"):
        parse_study_file(TEXT + "\n[baseline]\ntemperature = -1\n")
    with pytest.raises(InputError, match=r"study file, line 11: .*rouge9"):
        parse_study_file(TEXT.replace('"rouge1"', '"rouge9"'))


@pytest.mark.parametrize("word", ["cross", "auto"])
def test_halves_that_judge_each_other_are_a_holdout(word):
    assert parse_study_file(TEXT.replace("n_trials = 12", f'holdout = "{word}"')).study.holdout == word
