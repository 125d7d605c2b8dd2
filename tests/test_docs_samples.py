"""The page on samples keeps its word: its code runs, its study file is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.space.space import Space
from llmsearch_optuna.study_file.parse import parse_study_file
from llmsearch_optuna.study_file.template import new_study_file
from tests.synthetic import TextEngine

PAGE = (Path(__file__).parent.parent / "docs" / "samples.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(24)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": TextEngine()}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/samples.md", "exec"), names)
    sampled = [t for t in names["result"].trials if t.user_attrs["role"] == "searched"]
    assert {t.user_attrs["params"]["samples"] for t in sampled} == {8}
    assert names["right_letter"](["B."], ["B"]) == [1.0]
    assert Space.of(names["space"]).branches[0].searched["samples"].choices == (1, 4, 8)


def test_its_study_file_is_read() -> None:
    (said,) = (text for language, text in BLOCKS if language == "toml")
    written = new_study_file("x")
    for line in said.splitlines():
        key = line.split(" = ")[0]
        written = (
            re.sub(rf"^#? ?{re.escape(key)} = .*$", line, written, flags=re.MULTILINE) if " = " in line else written
        )
    file = parse_study_file(written)
    assert (file.study.samples, file.data.aggregate) == (8, "majority")
