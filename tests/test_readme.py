"""The README keeps its word: every Python snippet runs, every command and every make target exists."""

from __future__ import annotations

import json
import re
import shlex
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from llmsearch_optuna.cli.app import app

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
    for snippet in PYTHON:
        exec(compile(snippet.replace(MODEL, str(workplace)), "README.md", "exec"), names)
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


class ChatServer(BaseHTTPRequestHandler):
    """Answers as a server with OpenAI's interface does: with what it was asked."""

    asked: ClassVar[list[dict[str, object]]] = []

    def do_POST(self):
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        reply = {"choices": [{"message": {"role": "assistant", "content": body["messages"][0]["content"].upper()}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        """Say nothing."""


def test_a_server_with_openais_interface_can_be_searched():
    (snippet,) = (text for text in PYTHON if "ThreadPoolExecutor" in text)
    with ThreadingHTTPServer(("127.0.0.1", 0), ChatServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names: dict[str, Any] = {}
        exec(compile(snippet.replace("127.0.0.1:8000", f"127.0.0.1:{server.server_port}"), "README.md", "exec"), names)
        params = {"max_new_tokens": 7, "do_sample": True, "temperature": 0.5, "generation_seed": 3}
        answers = names["engine"].generate(["one", "two"], params)
        greedy = names["engine"].generate(["one"], {"max_new_tokens": 7})
        server.shutdown()
    assert [answer.text for answer in (*answers, *greedy)] == ["ONE", "TWO", "ONE"]
    sampled, *_, last = ChatServer.asked
    assert {name: sampled[name] for name in ("max_tokens", "temperature", "top_p", "seed")} == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 3,
    }
    assert last["temperature"] == 0.0


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
