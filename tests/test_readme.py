"""The README keeps its word: every Python snippet runs, every command and every make target exists."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsearch_optuna.cli.app import app
from tests.backends.stub_server import StubServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
LINES = [line.split("  #")[0] for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_llama, tiny_tokenizer):
    """A folder with the README's file of dialogues, and a tiny model in the place of its model."""
    model = tmp_path / "tiny-model"
    tiny_llama.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    rows = [
        {"dialogue": f"Anna: Do you have {n} apples?\nBen: Yes.", "summary": f"Ben has {n} apples."} for n in range(24)
    ]
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return model


def test_every_python_snippet_runs(workplace):
    names: dict[str, object] = {}
    with StubServer().running() as server:
        for snippet in PYTHON:
            here = snippet.replace(MODEL, str(workplace)).replace("http://127.0.0.1:8000/v1", server.url)
            exec(compile(here, "README.md", "exec"), names)
    assert all("Summarize" in body["messages"][0]["content"] for body in server.bodies())
    assert len(names["served"].trials) == 24
    assert Path("report.html").stat().st_size > 1_000_000
    config = json.loads(Path("tuned/generation_config.json").read_text(encoding="utf-8"))
    assert config["max_new_tokens"] == 40
    assert names["shortness"](["abcd"], ["ab"]) == [0.5]
    _space_and_metric_are_accepted(names)


def _space_and_metric_are_accepted(names):
    from llmsearch_optuna.metrics.metric import Metric
    from llmsearch_optuna.space.space import Space

    assert len(Space.of(names["space"]).branches) == 2
    assert Metric.of(names["shortness"]).bounds == (0, 1)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("llmsearch-optuna ")])
def test_every_command_and_option_exists(line):
    words = shlex.split(line)[1:]
    done = CliRunner().invoke(app, [words[0], "--help"])
    assert done.exit_code == 0, done.output
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option in done.output


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join([*LINES, *re.findall("`(make .*?)`", README)])))
    assert named
    assert named <= targets


def test_extras_and_files_that_it_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"'\.\[(\w+)\]'", README):
        assert extra in project["optional-dependencies"]
    for path in re.findall(r"studies/\w+\.toml|\.ci/run|constraints\.txt|\bLICENSE\b", README):
        assert (ROOT / path).is_file(), path


def test_every_command_of_the_program_is_in_the_readme_or_its_help():
    """A command that nobody is told of does not exist for users; the demo is told of as `make demo`."""
    for command in app.registered_commands:
        assert command.name is not None
        assert f"llmsearch-optuna {command.name}" in README or command.name == "demo"
