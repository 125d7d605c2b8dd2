"""`init` and `run --dry-run`: what there is before a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.study_file.parse import read_study_file
from llmsearch_optuna.study_file.schema import PUBLISHED

from .conftest import run


def test_a_dry_run_says_what_it_would_be_and_makes_no_study(capsys, workplace):
    before = sorted(workplace.rglob("*"))
    code, out, err = run(capsys, "run", "study.toml", "--dry-run")
    assert "Judged by the baseline's first rows: " in out
    assert code == 0
    assert [line.split()[0] for line in err.splitlines() if line and line[0] != " "] == [
        "study", "model", "data", "prompt", "space", "baseline", "search", "loading"
    ]  # fmt: skip
    assert "words: 12 trials, stored in sqlite:///studies/words.db" in err
    assert "rows.jsonl, rouge1 (maximize)" in err
    assert "sampling: temperature=0.1…2 max_new_tokens=20" in err
    assert "sampler tpe, pruner paired, holdout 0.3, seed 42, 4 trials in flight" in err
    assert out.startswith("forecast for 12 trials: ")
    assert max(map(len, [*out.splitlines(), *err.splitlines()])) <= 80
    assert sorted(workplace.rglob("*")) == before


def test_a_dry_run_says_which_rows_judge_and_why(capsys, workplace):
    path = Path("study.toml")
    by_default = path.read_text(encoding="utf-8").replace("holdout = 0.3\n", "")
    path.write_text(by_default, encoding="utf-8")
    _, out, err = run(capsys, "run", "study.toml", "--dry-run")
    assert "holdout auto" in err
    told = " ".join(out.split())
    assert "All 40 rows are searched and judged: in two halves of 20 and 20" in told
    assert "the default for 12 to 140 different prompts" in told
    path.write_text(by_default.replace("n_trials = 12", "n_trials = 12\nmargin = 0.1"), encoding="utf-8")
    _, out, _ = run(capsys, "run", "study.toml", "--dry-run")
    assert "12 of 40 rows are held out" in out
    assert "do not go together with margin=0.1" in " ".join(out.split())


def test_a_dry_run_as_json(capsys, workplace):
    arguments = ["run", "study.toml", "--dry-run", "--json", "-q", "--n-trials", "5"]
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["study"]["study"]["n_trials"] == found["forecast"]["n_trials"] == 5
    assert found["study"]["study"]["holdout"] == 0.3
    assert found["forecast"]["rows"]["low"] <= found["forecast"]["rows"]["high"]


def test_run_says_what_it_resolved_and_what_it_will_take(capsys, workplace):
    _, _, err = run(capsys, "run", "study.toml", "--n-trials", "4", "--rows", "30", "--name", "other")
    assert "other: 4 trials, stored in sqlite:///studies/other.db" in err
    assert "the first 30 rows" in err
    assert err.count("forecast for 4 trials:") == 1


def test_init_writes_a_study_file_and_its_schema(capsys, workplace):
    code, out, _ = run(capsys, "init", "new/mine.toml")
    assert code == 0
    assert "llmsearch-optuna run new/mine.toml" in out
    assert read_study_file("new/mine.toml").study.name == "mine"
    assert Path("new/study.schema.json").read_text(encoding="utf-8") == PUBLISHED.read_text(encoding="utf-8")
    code, _, err = run(capsys, "init", "new/mine.toml")
    assert (code, err) == (1, "error: new/mine.toml is there already; give another name\n")


def test_init_prints_the_schema(capsys, workplace):
    code, out, _ = run(capsys, "init", "--schema")
    assert code == 0
    assert json.loads(out)["title"] == "llmsearch-optuna study file"
    assert not Path("study.schema.json").exists()


def test_conditions_from_the_command_line_are_read_as_they_are_written() -> None:
    from llmsearch_optuna.cli.run import _limits

    assert _limits(["terminates>=0.9", "tokens <= 60"]) == {"terminates": ">=0.9", "tokens": "<= 60"}
    assert _limits(None) is None
    with pytest.raises(InputError, match="'terminates' has no limit"):
        _limits(["terminates"])
