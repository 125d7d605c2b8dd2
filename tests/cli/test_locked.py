"""`confirm` and `check` on the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from llmsearch_optuna.engine.request import Completion

from .conftest import WordEngine, run


class Silent(WordEngine):
    """Writes nothing any more."""

    def complete(self, prompt, params):
        return Completion("", (), "eos", len(prompt))


@pytest.fixture
def study(finished, workplace):
    """The finished study in a folder of its own."""
    (workplace / "studies").mkdir()
    return shutil.copy(finished, workplace / "studies" / "words.db")


def test_check_is_quiet_where_nothing_changed(capsys, study):
    code, out, err = run(capsys, "check", "study.toml")
    assert code == 0, err
    assert "No evidence of a loss" in out + err


def test_check_exits_with_1_where_the_model_got_worse(capsys, study, monkeypatch):
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: Silent())
    code, out, err = run(capsys, "check", "study.toml", "--margin", "0.01", "--json")
    assert code == 1, err
    found = json.loads(out)
    assert found["is_worse"]
    assert found["now"] == 0.0
    assert found["margin"] == 0.01


def test_confirm_gives_both_verdicts(capsys, study):
    code, out, err = run(capsys, "confirm", str(study), "--model", "served", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["here"]["difference"] == found["study"]["difference"]
    code, out, _ = run(capsys, "confirm", str(study), "--model", "served")
    assert code == 0
    assert "difference" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("confirm", "study.toml"), "say what will serve"),
        (
            ("check", "study.toml", "--model", "a", "--server", "http://127.0.0.1:1/v1"),
            "are two models; give one of them",
        ),
        (("check", "study.toml", "--margin", "-1"), "margin"),
        (("check", "nowhere.db"), "nowhere.db"),
    ],
)
def test_wrong_arguments_are_said(capsys, study, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code in (1, 2)
    assert message in err
