from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from llmsearch_optuna.api import search
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.model import StudyFile
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.study_file.schema import DIRECTIVE, PUBLISHED, SCHEMA_NAME, schema_text, study_file_schema
from llmsearch_optuna.study_file.template import new_study_file, write_new_study_file
from llmsearch_optuna.task.task import Task

STUDIES = Path(__file__).parents[2] / "studies"
ONLY_IN_PYTHON = {"callbacks", "generation", "observer", "progress"}
"""Functions, and what the command line decides itself."""

RENAMED = {"limit": "rows", "dataset": "path", "study_name": "name", "model": "name"}


def accepts(text: str) -> bool:
    return jsonschema.Draft7Validator(study_file_schema()).is_valid(tomllib.loads(text))


def test_the_published_schema_is_the_generated_one() -> None:
    """To publish it anew: llmsearch_optuna.study_file.schema.schema_text() into both files."""
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text()
    assert (STUDIES / SCHEMA_NAME).read_text(encoding="utf-8") == schema_text()
    jsonschema.Draft7Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("path", [*STUDIES.glob("*.toml"), PUBLISHED.with_name("quickstart.toml")], ids=str)
def test_study_files_name_their_schema_and_fit_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(DIRECTIVE + "\n")
    assert path.with_name(SCHEMA_NAME).is_file()
    assert accepts(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "x"', "nam = 3"),
        ('metric = "rouge1"', ""),
        ('direction = "maximize"', 'direction = "up"'),
        ("temperature =", "temprature ="),
        ("low = 0.1, high", "lo = 0.1, high"),
        ("batch_size = 8", "batch_size = 0"),
        ("[baseline]", "[base]"),
    ],
)
def test_editors_see_the_mistakes_that_reading_finds(old: str, new: str) -> None:
    text = new_study_file("x")
    for key in ("direction", "[baseline]", "do_sample = false"):
        text = text.replace(f"# {key}", key)
    text = text.replace('# batch_size = "auto"', "batch_size = 8")
    assert old in text
    assert accepts(text)
    parse_study_file(text)
    wrong = text.replace(old, new, 1)
    assert not accepts(wrong)
    with pytest.raises(ValueError):
        parse_study_file(wrong)


def test_everything_that_search_can_do_a_study_file_can() -> None:
    sections = [StudyFile.model_fields[name].annotation for name in ("study", "model", "data")]
    at_the_top = {"space", "baseline", "baselines", "try_first", "constraints"}
    keys = {key for section in sections for key in section.model_fields} | at_the_top
    wanted = {RENAMED.get(name, name) for name in inspect.signature(search).parameters} - ONLY_IN_PYTHON
    assert wanted <= keys
    of_task = {RENAMED.get(name, name) for name in Task.__dataclass_fields__} - ONLY_IN_PYTHON
    assert of_task <= keys


def test_every_key_reaches_search_or_the_task() -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", new_study_file("x"), flags=re.MULTILINE)
    text = (
        text.replace("# [baseline]", "[baseline]")
        .replace("# [[try_first]]", "[[try_first]]")
        .replace("# [constraints]", "[constraints]")
        .replace("# [baselines.authors]", "[baselines.authors]")
        .replace('name = "demo"', 'name = "my-model"')
        .replace('server = "http://127.0.0.1:8000/v1"\n', "")  # in the place of a name
        .replace('aggregate = "majority"', 'aggregate = "best"')
        .replace("pass_score = 1.0\n", "")  # of another aggregate
    )
    file = parse_study_file(text)
    arguments = search_arguments(file)
    of_search = set(inspect.signature(search).parameters)
    of_task = of_search & set(Task.__dataclass_fields__) - {"dataset"}
    assert of_search - set(arguments) == (ONLY_IN_PYTHON & of_search) | of_task
    task = arguments["dataset"]
    left_alone = {"name", "generation", "pass_score"}
    unsaid = {name for name in Task.__dataclass_fields__ if getattr(task, name) is None} - left_alone
    assert unsaid == set()
    assert (arguments["tokenizer"], arguments["max_tokens"], arguments["margin"]) == (
        "folder-of-a-tokenizer", 1_000_000, 0.01
    )  # fmt: skip


def test_a_new_study_file_can_be_run_and_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    write_new_study_file(path)
    file = parse_study_file(path.read_text(encoding="utf-8"))
    assert file.study.name == "mine"
    assert accepts(path.read_text(encoding="utf-8"))
    with pytest.raises(FileExistsError):
        write_new_study_file(path)


def test_messages_and_template_variables_may_stand_in_a_file() -> None:
    text = new_study_file("x").replace(
        'prompt = "Summarize the dialogue in one sentence.\\n\\n{dialogue}"',
        'prompt = [{role = "system", content = "Short."}, {role = "user", content = "{dialogue}"}]\n'
        "chat_template = {enable_thinking = false}",
    )
    assert accepts(text)
    task = search_arguments(parse_study_file(text.replace('name = "demo"', 'name = "m"')))["dataset"]
    assert task.prompt == [{"role": "system", "content": "Short."}, {"role": "user", "content": "{dialogue}"}]
    assert task.chat_template == {"enable_thinking": False}


def test_a_task_of_another_library_needs_no_metric() -> None:
    text = re.sub(r'^metric = "rouge1"\n', "", new_study_file("x"), flags=re.MULTILINE)
    ready = re.sub(r'^path = "demo"', 'path = "lm_eval:gsm8k"', text, flags=re.MULTILINE)
    assert accepts(ready)
    assert not accepts(text)
    assert search_arguments(parse_study_file(ready.replace('name = "demo"', 'name = "m"')))["dataset"].metric is None
