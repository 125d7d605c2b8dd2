"""`run`, `confirm` and `check` on the command line, where a server decodes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.backends.stub_server import StubServer
from tests.servers.command_line import write_study_file

from .conftest import run

ROWS = [{"dialogue": f"Ann: {n}", "summary": "0.9 0.8"} for n in range(24)]
SECRET = "sk-not-to-be-seen"


def worded(answer: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Write the two words of the reference where there is room for them, and one of them where there is not."""
    text = "0.9 0.8" if body["max_tokens"] > 1 else "0.9"
    answer["choices"][0]["message"]["content"] = text
    return answer


def silent(answer: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Write nothing."""
    answer["choices"][0]["message"]["content"] = ""
    return answer


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(change=worded).running() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: StubServer) -> Path:
    """Where the commands run, with a study file that keeps its key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUB_KEY", SECRET)
    write_study_file(tmp_path, stub.url, ROWS)
    text = Path("study.toml").read_text()
    Path("study.toml").write_text(text.replace("[data]", 'api_key_env = "STUB_KEY"\n\n[data]'))
    return tmp_path


def test_a_study_is_run_confirmed_elsewhere_and_checked(
    capsys: pytest.CaptureFixture[str], folder: Path, stub: StubServer
) -> None:
    code, out, err = run(capsys, "run", "study.toml")
    assert code == 0, err
    said = out + err
    with StubServer(change=worded).running() as serving:
        code, out, err = run(capsys, "confirm", "served.db", "--server", serving.url, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["here"]["difference"] == found["study"]["difference"] > 0
        assert "authorization" not in {
            name for headers in serving.headers for name in headers if SECRET in str(headers)
        }
        said += out + err
    code, out, err = run(capsys, "check", "served.db", "--margin", "0.01", "--json")
    assert (code, json.loads(out)["changed"]) == (0, 0), err
    stub.change = silent
    code, out, err = run(capsys, "check", "served.db", "--margin", "0.01", "--json")
    assert (code, json.loads(out)["is_worse"]) == (1, True), err
    code, out, err = run(capsys, "report", "served.db")
    assert code == 0, err
    assert SECRET not in said + out + err
    for path in folder.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    with sqlite3.connect("served.db") as connection:
        assert SECRET not in "".join(connection.iterdump())
    assert all(headers["authorization"] == f"Bearer {SECRET}" for headers in stub.headers)
