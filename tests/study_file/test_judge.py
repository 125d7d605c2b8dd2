"""A judge in a study file: read, checked, asked by the commands, and made again in other processes."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from llmsearch_optuna import judge
from llmsearch_optuna.cli.app import app
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.judged import JudgedMetric
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.model import study_file_text
from llmsearch_optuna.study_file.parse import parse_study_file
from tests.backends.stub_server import StubServer

FILE = """
[study]
name = "judged"
n_trials = 4
holdout = 0.4
{study}
[model]
server = "{server}"

[data]
path = "rows.jsonl"
prompt = "{{question}}"
{data}
[space]
max_new_tokens = 8
do_sample = true
temperature = {{low = 0.1, high = 1.5}}
{more}
[judge]
server = "{judge}"
rubric = "Is it a good answer?"
scale = [0, 1]
"""

ROWS = [{"question": f"What is {n} + {n}?", "answer": "6"} for n in range(25)]


def file_of(server: str = "http://127.0.0.1:9", judged: str = "http://127.0.0.1:9", **parts: str) -> str:
    parts = {"study": "", "data": 'metric = "judge"', "more": "", **parts}
    return FILE.format(server=server, judge=judged, **parts)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*command: str) -> str:
    shown = CliRunner().invoke(app, list(command))
    assert shown.exit_code == 0, f"{shown.output}{shown.exception}"
    return shown.output


def test_the_commands_ask_the_judge_of_the_file(workplace: Path) -> None:
    decodes, judges = StubServer(), StubServer(model="judge")
    with decodes.running(), judges.running():
        text = file_of(decodes.url, judges.url, data='metric = "judge"\nreference = "answer"') + "repeats = 2\n"
        Path("study.toml").write_text(text, encoding="utf-8")
        said("run", "study.toml", "--quiet")
        assert all("Is it a good answer?" in json.dumps(body) for body in judges.bodies())
        assert len(judges.answered) > 50
        result = load_result("sqlite:///studies/judged.db")
        scores = [r.score for r in result.records(0)]
        assert len(set(scores)) > 5
        assert all(s is not None and 0 <= s <= 1 for s in scores)
        assert "judge" in result.settings["metric"]
        before = sum(judges.answered.values())
        assert '"score"' in said("score", "study.toml", "temperature=0.7", "do_sample=true", "--json")
        assert sum(judges.answered.values()) > before
        said("check", "studies/judged.db")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"data": "metric = {judge = 1.0, json_valid = 0.5}"}, "judge + 0.5 json_valid"),
        ({"data": 'metric = "json_valid"', "more": '[constraints]\njudge = ">= 0.2"'}, "json_valid"),
        ({"data": 'metric = "json_valid"', "study": 'objectives = ["score", "judge"]'}, "json_valid"),
        ({"data": 'metric = "json_valid"\naggregate = "best"\nscorer = "judge"', "study": "samples = 3"}, "json_valid"),
    ],
)
def test_it_may_be_one_of_several_metrics_a_condition_an_objective_or_the_scorer(
    parts: dict[str, str], told: str, workplace: Path
) -> None:
    judges = StubServer()
    with judges.running():
        file = parse_study_file(file_of(judged=judges.url, **parts))
        given = search_arguments(file)
        metric = given["dataset"].metric
        named = [metric, *(metric if isinstance(metric, dict) else ()), given["dataset"].scorer]
        named += [*(given.get("constraints") or ()), *(given.get("objectives") or ())]
        (found,) = (item for item in named if isinstance(item, JudgedMetric))
        assert found.bounds == (0.0, 1.0)
        assert given["dataset"].metric_name == told
        assert parse_study_file(study_file_text(file)) == file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[judge]", "[jury]"), "jury"),
        (('metric = "judge"', 'metric = "json_valid"'), r"line \d+.*describes a judge that nothing asks"),
        (('rubric = "Is it a good answer?"', ""), "rubric"),
        (('rubric = "Is it a good answer?"', 'rubric = ""'), "rubric"),
        (("scale = [0, 1]", "scale = [0]"), "scale"),
        (("scale = [0, 1]", "scale = [1, 0]"), "the lowest score must be below the highest one"),
        (("scale = [0, 1]", "scal = [0, 1]"), r"judge.scal is not a key here; did you mean 'scale'\?"),
        (("scale = [0, 1]", "repeats = 0"), "repeats"),
        (('[judge]\nserver = "http://127.0.0.1:9"', "[judge]"), "the judge's model is missing"),
        (('[judge]\nserver = "http://127.0.0.1:9"', '[judge]\nserver = "nowhere"'), "is no address"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_opened(change: tuple[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_study_file(file_of().replace(*change))


def test_a_judge_without_its_table_and_one_that_cannot_be_opened_are_told(workplace: Path) -> None:
    without = file_of().split("[judge]")[0]
    with pytest.raises(InputError, match=r'the metric "judge" needs a table \[judge\]'):
        parse_study_file(without)
    with pytest.raises(InputError, match=r"give llmsearch_optuna.judge\(model, rubric\)"):
        Metric.of("judge")
    wrong = file_of().replace('[judge]\nserver = "http://127.0.0.1:9"', '[judge]\nname = "no-such-folder/model"')
    with pytest.raises(InputError, match=r"\[judge\]: "):
        search_arguments(parse_study_file(wrong))


def test_a_judge_by_name_goes_to_other_processes_and_labels_come_from_a_file(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    labels = tmp_path / "labels.csv"
    labels.write_text("row,answer,score\n3,yes,4\n4,no,2\n", encoding="utf-8")
    made = judge(str(tmp_path / "model"), "Good?", labels=labels, name="strict")
    assert made.labels.scores == {(3, "yes"): 4.0, (4, "no"): 2.0}
    again: Any = pickle.loads(pickle.dumps(made))
    assert (again.name, again.bounds, again.labels) == (made.name, made.bounds, made.labels)
    assert again.judgements.identity == made.judgements.identity
    with pytest.raises(InputError, match="cannot go to another process"):
        pickle.dumps(judge(tiny_llama, "Good?", tokenizer=tiny_tokenizer))
    for line, told in (
        ("3,yes,", "score '' is no number"),
        ("3,yes,good", "score 'good' is no number"),
        ("3,yes,9", "1 to 5"),
    ):
        labels.write_text(f"row,answer,score\n{line}\n", encoding="utf-8")
        with pytest.raises(InputError, match=re.escape(told)):
            judge(str(tmp_path / "model"), "Good?", labels=labels)
