"""Prompts as choices on the command line: shown before a study, scored one by one, and printed with what won."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import STUDY, run

CHOICES = """
system = [false, "Be brief."]

[data.prompt]
plain = "Repeat: {words}"
kind = "Please repeat, word for word: {words}"
"""


@pytest.fixture
def choosing(workplace: Path) -> Path:
    """The folder of a study that chooses among prompts."""
    lines = STUDY.splitlines()
    lines = [line for line in lines if not line.startswith("prompt")]
    place = next(n for n, line in enumerate(lines) if line.startswith("[data]"))
    end = next((n for n in range(place + 1, len(lines)) if lines[n].startswith("[")), len(lines))
    text = "\n".join([*lines[:end], *CHOICES.splitlines(), *lines[end:]])
    (workplace / "study.toml").write_text(text, encoding="utf-8")
    return workplace


def test_a_dry_run_says_what_is_chosen_from(capsys: pytest.CaptureFixture[str], choosing: Path) -> None:
    code, _, err = run(capsys, "run", "study.toml", "--dry-run")
    assert code == 0
    assert "{plain, kind}" in err
    assert "{1. none, 2. Be brief.}" in err


def test_one_prompt_is_scored_at_a_time(capsys: pytest.CaptureFixture[str], choosing: Path) -> None:
    _, out, _ = run(capsys, "score", "study.toml", "--json")
    first = json.loads(out)
    assert first["params"]["prompt"] == "plain"
    _, out, _ = run(capsys, "score", "study.toml", "prompt=kind", 'system="2. Be brief."', "--json")
    kind = json.loads(out)
    assert (kind["params"]["prompt"], kind["params"]["system"]) == ("kind", "2. Be brief.")
    assert kind["completions"] != first["completions"]
    code, _, err = run(capsys, "score", "study.toml", "prompt=other", "--json")
    assert (code, err.splitlines()[-1]) == (1, "error: prompt='other' is none of 'plain', 'kind'")


def test_what_won_is_printed_in_full(capsys: pytest.CaptureFixture[str], choosing: Path) -> None:
    code, out, err = run(capsys, "run", "study.toml", "--n-trials", "5", "--quiet", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert set(facts["recommended_task_options"]) == {"prompt", "system"}
    assert facts["recommended_task_options"]["prompt"] in CHOICES
    code, out, err = run(capsys, "run", "study.toml", "--n-trials", "5")
    assert code == 0
    assert 'prompt: "' in out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind =", "plain2 = 3\nkind =", "data.prompt.plain2 = 3: input should be a valid string"),
        ('[false, "Be brief."]', '["Be brief.", "Be brief."]', "are the same; leave one out"),
        ('[false, "Be brief."]', "[true, false]", "data.system.0 = True: input should be"),
    ],
)
def test_wrong_study_files_are_said_in_words(
    capsys: pytest.CaptureFixture[str], choosing: Path, old: str, new: str, said: str
) -> None:
    path = choosing / "study.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    code, _, err = run(capsys, "run", "study.toml", "--dry-run")
    assert code == 1
    assert said in err
    assert "study.toml, line" in err
