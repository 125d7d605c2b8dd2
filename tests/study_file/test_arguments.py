"""What `search` is called with for a study file."""

from __future__ import annotations

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.study_file.arguments import DEMO_DIALOGUES, search_arguments
from llmsearch_optuna.study_file.model import DEMO_STUDY, study_file_text
from llmsearch_optuna.study_file.parse import parse_study_file
from tests.study_file.texts import TEXT


def test_the_demos_data_are_the_bundled_dialogues():
    from llmsearch_optuna.demo.dialogues import demo_dialogues

    text = TEXT.replace('"rows.jsonl"', '"demo"').replace('{q}"', '{dialogue}"\nreference = "summary"')
    task = search_arguments(parse_study_file(text))["dataset"]
    assert task.dataset == DEMO_DIALOGUES
    assert [row["dialogue"] for row in task.prepare().rows] == [row["dialogue"] for row in demo_dialogues()]


def test_what_a_file_leaves_out_is_left_to_search():
    assert set(search_arguments(parse_study_file(TEXT))) == {
        "model", "dataset", "space", "n_trials", "study_name"
    }  # fmt: skip


def test_the_pruners_risk_can_be_set():
    text = TEXT.replace("n_trials = 12", "n_trials = 12\npruner = {risk = 0.05}")
    file = parse_study_file(text)
    assert search_arguments(file)["pruner"] == PairedPruner(risk=0.05)
    assert parse_study_file(study_file_text(file)) == file
    with pytest.raises(InputError, match=r"line 4: study\.pruner\.risk = 2\.0"):
        parse_study_file(text.replace("0.05", "2.0"))


def test_named_baselines_are_read_and_checked() -> None:
    text = 'baseline = "authors"\n' + DEMO_STUDY.read_text(encoding="utf-8")
    named = text + "\n[baselines.authors]\ndo_sample = true\ntemperature = 0.6\n"
    given = search_arguments(parse_study_file(named))
    assert given["baselines"] == {"authors": {"do_sample": True, "temperature": 0.6}}
    assert given["baseline"] == "authors"
    with pytest.raises(InputError, match="baseline='authors' is none of the baselines"):
        parse_study_file(text)
    with pytest.raises(InputError, match="temprature"):
        parse_study_file(named.replace("temperature = 0.6", "temprature = 0.6"))
