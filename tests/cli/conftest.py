"""A study file whose model is synthetic, and a finished study of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.cli import app
from llmsearch_optuna.engine.request import Completion
from tests.synthetic import TextEngine, score_of

STUDY = """\
[study]
name = "words"
n_trials = 12
holdout = 0.3

[model]
name = "synthetic"

[data]
path = "rows.jsonl"
prompt = "Repeat: {words}"
reference = "words"
metric = "rouge1"

[baseline]
do_sample = true

[space]
max_new_tokens = 20
do_sample = true
temperature = {low = 0.1, high = 2.0}
stop = ["\\n\\n"]
"""
WORDS = tuple("ash birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew".split())  # noqa: SIM905


class WordEngine(TextEngine):
    """Repeats the more words, the better the temperature."""

    name = "synthetic"
    description = {"engine": "words"}  # noqa: RUF012

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        words = prompt.removeprefix("Repeat: ").split()
        kept = words[: round(len(words) * score_of(prompt, params, self.quality))]
        return replace(super().complete(prompt, params), text=" ".join(kept))


class Stopped(WordEngine):
    """Is interrupted in the middle."""

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        if len(self.calls) > 60:
            raise KeyboardInterrupt
        return super().generate(prompts, params)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The current folder for one test, with `study.toml` and its rows in it."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The database of a study that has ended; read only."""
    folder = tmp_path_factory.mktemp("finished")
    write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
        with pytest.raises(SystemExit) as ended:
            app.main(["run", "study.toml", "--quiet"])
    assert ended.value.code in (0, None)
    return folder / "studies" / "words.db"


def write_study(folder: Path) -> None:
    """Write `study.toml` and 40 rows into a folder."""
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    rows = [{"words": " ".join(WORDS[(i + j) % 14] for j in range(5 + i % 7)) + f" {i}"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command in this process."""
    with pytest.raises(SystemExit) as caught:
        app.main(arguments)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err
