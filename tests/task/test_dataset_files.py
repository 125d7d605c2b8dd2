"""Files as people have them: packed, in folders, by a pattern, and under names of other formats."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pandas as pd
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.dataset import dataset_name, read_rows
from llmsearch_optuna.task.task import Task

ROWS = [{"a": "x", "n": 1}, {"a": "ü\ny", "n": 2}, {"a": "", "n": 3}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_a_cell_of_a_csv_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n" + "x" * 400_000 + ",1\n")
    assert len(read_rows(tmp_path / "rows.csv")[0]["a"]) == 400_000


def test_a_heading_that_has_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(InputError, match="several columns are called 'a'"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_lines_named_json_are_read_as_datasets_writes_them(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    datasets.Dataset.from_list(rows).to_json(tmp_path / "rows.json")
    assert read_rows(tmp_path / "rows.json") == tuple(rows)


@pytest.mark.parametrize(("suffix", "opening"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_packed_files_are_read(tmp_path: Path, suffix: str, opening, name: str) -> None:
    frame = pd.DataFrame(ROWS)
    path = tmp_path / f"{name}{suffix}"
    with opening(path, "wt", encoding="utf-8") as file:
        file.write({"rows.jsonl": LINES, "rows.json": json.dumps(ROWS), "rows.csv": frame.to_csv(index=False)}[name])
    assert [str(row["n"]) for row in read_rows(path)] == ["1", "2", "3"]
    assert dataset_name(path) == "rows"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(path)


def test_folders_and_patterns_are_all_their_files_in_order(tmp_path: Path) -> None:
    pd.DataFrame(ROWS[:1]).to_parquet(tmp_path / "0.parquet")
    pd.DataFrame(ROWS[1:]).to_parquet(tmp_path / "1.parquet")
    (tmp_path / "README.md").write_text("about")
    assert read_rows(tmp_path) == read_rows(f"{tmp_path}/*.parquet") == tuple(ROWS)
    assert read_rows(f"{tmp_path}/[1].parquet") == tuple(ROWS[1:])
    with pytest.raises(InputError, match="no file that can be read"):
        read_rows(f"{tmp_path}/*.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file that can be read"):
        read_rows(tmp_path / "empty")


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_an_assistant_that_calls_tools_needs_no_text(content: dict[str, None], tiny_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] or m['tool_calls'][0]['name'] }};{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "tool_calls": [{"name": "clock"}], **content},
        {"role": "tool", "content": "12:00"},
    ]
    task = Task([{"prompt": messages, "reference": "noon"}], metric="f1").prepare(tokenizer)
    assert task.prompts == ("user:time?;assistant:clock;tool:12:00;",)
    with pytest.raises(InputError, match="is no chat message"):
        Task([{"prompt": [{"role": "assistant", "content": None}], "reference": "a"}], metric="f1").prepare(tokenizer)
