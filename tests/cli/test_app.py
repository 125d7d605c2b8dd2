"""The program as a whole: help, errors in words, exit codes; never a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmsearch_optuna import __version__
from llmsearch_optuna.cli import app as program
from llmsearch_optuna.cli import inspect
from llmsearch_optuna.errors import InputError, StudyError

from .conftest import run

COMMANDS = ["init", "demo", "run", "score", "status", "report", "compare", "dashboard", "export", "import"]


def test_help_lists_every_command_in_full():
    text = CliRunner().invoke(program.app, ["--help"]).output
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert "..." not in text[text.index("Commands:") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_is_explained(command):
    done = CliRunner().invoke(program.app, [command, "--help"])
    assert done.exit_code == 0
    assert max(len(line) for line in done.output.splitlines()) <= 80
    options = [line for line in done.output.splitlines() if line.strip().startswith("--")]
    assert all(len(line.split(maxsplit=2)) == 3 for line in options)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"llmsearch-optuna {__version__}\n", "")


def test_help_loads_no_machine_learning():
    code = (
        "import sys\nfrom llmsearch_optuna.cli.app import main\ntry:\n    main(['run', '--help'])\n"
        "except SystemExit:\n    pass\nprint([m for m in ('torch', 'transformers', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing argument 'STUDY.toml'"),
        (["run", "s.toml", "--n-trials", "0"], "Invalid value for '--n-trials'"),
        (["run", "s.toml", "--n-trails", "3"], "No such option"),
    ],
)
def test_wrong_usage_is_code_2(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "error: there is no study file nowhere.toml"),
        (["status", "nowhere.db"], "error: there is no study at nowhere.db"),
        (["status", "nowhere"], "error: there is no study at studies/nowhere.db"),
        (["report", "mysql://x/y"], "SQLite or PostgreSQL"),
        (["export", "nowhere.db", "-o", "x"], "error: there is no study at nowhere.db"),
        (["score", "nowhere.toml"], "error: there is no study file nowhere.toml"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_a_database_that_is_no_study_is_said_in_words(capsys, tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database at all, only some text that is long enough to be read as a header" * 3)
    code, _, err = run(capsys, "status", str(path))
    assert code == 1
    assert "x.db" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
        (StudyError("no \x1b[2J"), 1, "error: no \\x1b[2J"),
        (InputError("two\nlines"), 1, "error: two\nlines"),
        (ZeroDivisionError("x"), 1, "error: this should not have happened: ZeroDivisionError: x"),
    ],
)
def test_errors_become_one_message_and_a_code(capsys, monkeypatch, raised, code, message):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(inspect.arguments, "load", fail)
    got, _, err = run(capsys, "status", "x.db")
    assert got == code
    assert err.startswith(message)
    assert "Traceback" not in err


def test_an_interrupted_study_is_code_130_and_no_error(capsys, monkeypatch, tmp_path):
    from llmsearch_optuna.optimize.signals import StudyInterrupted

    def fail(*_: object, **__: object) -> None:
        raise StudyInterrupted("interrupted after 3 of 24 trials; run the same command again to go on")

    monkeypatch.setattr("llmsearch_optuna.cli.run._search_and_tell", fail)
    code, _, err = run(capsys, "demo")
    assert code == 130
    assert err == "interrupted after 3 of 24 trials; run the same command again to go on\n"


def test_bugs_show_their_traceback_when_asked(monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect.arguments, "load", fail)
    monkeypatch.setenv("LLMSEARCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        program.main(["status", "x.db"])
