"""Arguments that nobody means end in words: no traceback, nothing that drives a terminal, nothing to report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import run

LONG = "x" * 300
ODD = ("", "\x1b]0;t\x07", "\udcff", LONG, "nan", "1e400", "\u202e", "１", ".", "a\nb", "vllm:", "http://")


@pytest.mark.parametrize("word", ODD)
def test_odd_words_in_every_place(
    finished: Path, workplace: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    study, new = str(finished), str(workplace / "s.db")
    for command in (
        ["status", word],
        ["status", study, "--study-name", word],
        ["compare", study, word],
        ["report", study, "--rescore", word],
        ["confirm", study, "--model", "x", "--data", word],
        ["check", study, "--margin", word],
        ["push", study, "--repo", word, "--dry-run"],
        ["push", study, "--repo", "a/b", "--to", word],
        ["salvage", word],
        ["import", word],
        ["export", study, "--for", word, "-o", "exported"],
        ["run", word],
        ["run", "study.toml", "--storage", new, "--constraint", word],
        ["run", "study.toml", "--storage", new, "--constraint", f"{word} >= 0.5"],
        ["run", "study.toml", "--storage", new, "--constraint", f"terminates >= {word}"],
        ["run", "study.toml", "--storage", new, "--workers", word],
        ["score", "study.toml", word],
        ["score", "study.toml", "--params", word],
        ["score", "study.toml", f"presence_penalty={word}"],
        ["score", "study.toml", f"dry_sequence_breakers={word}"],
    ):
        code, out, err = run(capsys, *command)
        assert code in (0, 1, 2), command
        assert "this should not have happened" not in out + err, (command, err)
        assert "\x1b]" not in out + err, command


@pytest.mark.parametrize("word", ["", "\udcff"])
def test_a_name_that_cannot_be_is_told(workplace: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    code, _, err = run(capsys, "run", "study.toml", "--name", word)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: name = ")


@pytest.mark.parametrize("command", [["export", "-o"], ["salvage", "-o"], ["report", "-o"], ["export", "--bundle"]])
@pytest.mark.parametrize("target", [f"{LONG}/x", "study.toml/x", "/proc/x/y"])
def test_a_place_that_cannot_be_written_is_told(
    finished: Path, workplace: Path, capsys: pytest.CaptureFixture[str], command: list[str], target: str
) -> None:
    code, _, err = run(capsys, command[0], str(finished), command[1], target)
    assert code == 1
    assert "this should not have happened" not in err
