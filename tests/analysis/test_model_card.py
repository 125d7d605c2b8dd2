"""Pushing to a hub: the real client against a hub of this test's own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from llmsearch_optuna.analysis.model_card import BEGIN, END, card_section, with_section
from tests.cli.conftest import run
from tests.optimize.studies import run as run_study
from tests.synthetic import dataset

CARD = "---\nlicense: mit\n---\n# A model\n\nText of its author.\n"


class Hub(BaseHTTPRequestHandler):
    """What of the Hub's interface a commit takes."""

    commits: list[list[dict]] = []  # noqa: RUF012
    tokens: set[str | None] = set()  # noqa: RUF012
    card: str | None = CARD

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, *, body=True):
        self.tokens.add(self.headers.get("Authorization"))
        if not self.path.endswith("/README.md") or "me/model" not in self.path or self.card is None:
            self.send_response(404)
            known = "me/model" in self.path
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        text = self.card.encode()
        self.send_response(200)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(sent)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self.commits.append([json.loads(line) for line in sent.splitlines()])
            url = f"http://127.0.0.1:{self.server.server_port}/me/model/commit/abc"
            self._answer({"commitUrl": url, "commitOid": "abc", "success": True})
        else:
            self._answer({})

    def _answer(self, values):
        text = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"commits": [], "tokens": set()}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_study(tmp_path_factory.mktemp("card"), dataset=dataset(60), n_trials=6)


def push(hub, study, tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    """`push` in a process of its own, for the client reads its address when it is imported."""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secretsecretsecret",
        "HF_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-m", "llmsearch_optuna", "push", str(study.opened.path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def connected(hub, monkeypatch) -> None:
    """This process speaks to the hub of the test."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")


def files_of(commit) -> dict[str, str]:
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
        for line in commit
        if line["key"] == "file"
    }


def test_one_commit_holds_the_configuration_and_the_card_with_its_section(hub, study, tmp_path):
    done = push(hub, study, tmp_path, "--to", "hub", "--repo", "me/model")
    assert done.returncode == 0, done.stderr
    (commit,) = hub.RequestHandlerClass.commits
    files = files_of(commit)
    assert json.loads(files["generation_config.json"])["temperature"] == study.recommended_params["temperature"]
    assert files["README.md"].startswith(CARD.rstrip())
    assert study.verdict.headline in files["README.md"]
    assert f"http://127.0.0.1:{hub.server_port}/me/model/commit/abc" in done.stdout
    assert "Bearer hf_secretsecretsecret" in hub.RequestHandlerClass.tokens
    assert "hf_secret" not in done.stdout + done.stderr + str(files)


@pytest.mark.usefixtures("connected")
def test_a_dry_run_sends_nothing(hub, study, capsys):
    code, out, err = run(capsys, "push", str(study.opened.path), "--repo", "me/model", "--dry-run")
    assert code == 0, err
    assert "Bearer hf_secretsecretsecret" in hub.RequestHandlerClass.tokens, "the card was read"
    assert hub.RequestHandlerClass.commits == []
    assert BEGIN in out
    assert "Text of its author." in out


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("me/nothing", "me/nothing cannot be read or written (HTTP 404)"),
        ("no//name", "is no name of a repository"),
    ],
)
def test_a_repository_that_is_not_there_is_said(study, capsys, repo, said):
    code, _, err = run(capsys, "push", str(study.opened.path), "--repo", repo)
    assert code == 1
    assert said in " ".join(err.split())


def test_a_later_section_takes_the_place_of_an_earlier_one(study):
    section = card_section(study)
    once = with_section(CARD, section)
    assert with_section(once, section) == once
    between = once + "\nMore by the author.\n"
    other = with_section(between, f"{BEGIN}\nother\n{END}\n")
    assert other == f"{CARD}\n{BEGIN}\nother\n{END}\n\nMore by the author.\n"
    assert with_section("", section) == section
