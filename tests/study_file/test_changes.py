"""What the command line and defaults put in the place of a file's values."""

from __future__ import annotations

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes, with_defaults
from llmsearch_optuna.study_file.model import DEMO_STUDY
from llmsearch_optuna.study_file.parse import parse_study_file
from tests.study_file.texts import TEXT


def test_defaults_stand_where_a_file_is_silent() -> None:
    file = parse_study_file(TEXT)
    assert (file.data.direction, with_defaults(file).data.direction) == (None, "maximize")
    assert (with_defaults(file).study.n_trials, with_defaults(file).study.holdout) == (12, "auto")


def test_the_command_line_puts_values_in_their_place():
    file = Changes(data="other.csv", rows=5, n_trials=3, name="y").apply(parse_study_file(TEXT))
    assert (file.data.path, file.data.rows, file.study.n_trials, file.study.name) == ("other.csv", 5, 3, "y")
    assert file.data.prompt == "Ask: {q}"
    assert Changes().apply(file) == file


def test_conditions_are_read_checked_and_changed_from_outside() -> None:
    text = DEMO_STUDY.read_text(encoding="utf-8") + '\n[constraints]\nterminates = ">= 0.9"\n'
    file = parse_study_file(text)
    assert search_arguments(file)["constraints"] == {"terminates": ">= 0.9"}
    changed = Changes(constraints={"terminates": ">= 0.8", "tokens": "<= 60"}).apply(file)
    assert search_arguments(changed)["constraints"] == {"terminates": ">= 0.8", "tokens": "<= 60"}
    assert "constraints" not in search_arguments(parse_study_file(DEMO_STUDY.read_text(encoding="utf-8")))
    line = text.splitlines().index('terminates = ">= 0.9"') + 1
    with pytest.raises(InputError, match=rf"line {line}: .*'0.9' is no limit"):
        parse_study_file(text.replace(">= 0.9", "0.9"))
    with pytest.raises(InputError, match="did you mean 'terminates'"):
        Changes(constraints={"terminats": ">= 0.9"}).apply(file)
