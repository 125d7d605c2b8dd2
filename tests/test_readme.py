"""The README and the guides keep their word: snippets run; commands, make targets, files and links exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmsearch_optuna.cli.app import app
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.space.space import Space
from tests.backends.stub_server import StubServer

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
README = PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
ALL = "\n".join(PAGES.values())
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(text: str, wanted: str) -> list[str]:
    """Return a page's blocks of code in a language."""
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language == wanted]


LINES = [line.split("  #")[0].strip() for code in blocks(ALL, "bash") for line in code.splitlines()]


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


def run(page: str, model: Path, server: str) -> dict[str, Any]:
    """Run a page's snippets one after the other, with fewer trials, and return what they have named."""
    names: dict[str, Any] = {}
    for snippet in blocks(PAGES[page], "python"):
        here = snippet.replace(MODEL, str(model)).replace("http://127.0.0.1:8000/v1", server)
        exec(compile(here.replace("n_trials=24", "n_trials=6"), page, "exec"), names)
    return names


def test_the_snippets_of_the_readme_run(workplace):
    with StubServer().running() as server:
        names = run("README.md", workplace, server.url)
    assert all("Summarize" in body["messages"][0]["content"] for body in server.bodies())
    assert len(names["served"].trials) == 6
    assert Path("report.html").stat().st_size > 1_000_000
    config = json.loads(Path("tuned/generation_config.json").read_text(encoding="utf-8"))
    assert config["max_new_tokens"] == 40


def test_the_snippets_of_the_guides_run(workplace):
    names = run("docs/python.md", workplace, "")
    assert len(Space.of(names["space"]).branches) == 2
    assert names["before"].completions[0].text
    names = run("docs/metrics.md", workplace, "")
    assert names["shortness"](["abcd"], ["ab"]) == [0.5]
    assert Metric.of(names["shortness"]).bounds == (0, 1)
    assert names["metric"].name == "json_schema"


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGES[page]):
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if heading:
            text = path.read_text(encoding="utf-8")
            assert heading in {anchor(line) for line in re.findall(r"^#+ (.*)$", text, re.M)}, target


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("llmsearch-optuna ")])
def test_every_command_and_option_exists(line):
    words = shlex.split(line)[1:]
    done = CliRunner().invoke(app, [words[0], "--help"])
    assert done.exit_code == 0, done.output
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option in done.output


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join([*LINES, *re.findall("`(make .*?)`", ALL)])))
    assert named
    assert named <= targets


def test_extras_and_files_that_it_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"'\.\[(\w+)\]'", ALL):
        assert extra in project["optional-dependencies"]
    for path in re.findall(r"studies/\w+\.toml|\.ci/run|constraints\.txt|\bLICENSE\b", ALL):
        assert (ROOT / path).is_file(), path


def test_every_command_of_the_program_is_told_of():
    """A command that nobody is told of does not exist for users; the demo is told of as `make demo`."""
    for command in app.registered_commands:
        assert command.name is not None
        assert f"llmsearch-optuna {command.name}" in ALL or command.name == "demo"
