"""A server in the place of a model: in a study file, and on the command line."""

from __future__ import annotations

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.parse import parse_study_file

URL = "http://127.0.0.1:8000/v1"
FILE = """
[study]
name = "s"
[model]
{model}
[data]
path = "demo"
metric = "rouge1"
reference = "summary"
[space]
max_new_tokens = 8
do_sample = true
temperature = {{low = 0.1, high = 1.0}}
"""


def test_a_server_is_the_model() -> None:
    file = parse_study_file(FILE.format(model=f'server = "{URL}"\nserved_model = "m"'))
    found = search_arguments(file)
    assert (found["model"], found["served_model"]) == (URL, "m")
    assert "server" not in found


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "a model is missing"),
        (f'name = "demo"\nserver = "{URL}"', "are two models"),
        ('server = "127.0.0.1:8000"', "is no address"),
    ],
)
def test_there_is_one_model(model: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_study_file(FILE.format(model=model))


def test_the_command_line_puts_a_server_in_the_place_of_a_model_and_the_reverse() -> None:
    named, served = (parse_study_file(FILE.format(model=m)) for m in ('name = "demo"', f'server = "{URL}"'))
    assert search_arguments(Changes(server=URL).apply(named))["model"] == URL
    assert search_arguments(Changes(model="folder").apply(served))["model"] == "folder"
    with pytest.raises(InputError, match="are two models"):
        Changes(model="folder", server=URL).apply(named)
    with pytest.raises(InputError, match="is no address"):
        Changes(server="here").apply(named)
