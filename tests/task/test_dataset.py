"""Data of every kind becomes the same plain rows, and what cannot be read is said plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.dataset import dataset_name, read_rows

ROWS = [{"text": "first, with a comma", "answer": "1"}, {"text": "zweite Zeile\nmit Umbruch", "answer": "2"}]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == ".parquet":
        pandas.DataFrame(ROWS).to_parquet(path)
    else:
        pandas.DataFrame(ROWS).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    assert read_rows(path) == read_rows(str(path)) == tuple(ROWS)
    assert dataset_name(path) == "rows"


@pytest.mark.parametrize(
    "dataset",
    [ROWS, tuple(ROWS), datasets.Dataset.from_list(ROWS), pandas.DataFrame(ROWS)],
    ids=["list", "tuple", "Dataset", "DataFrame"],
)
def test_data_in_memory_gives_the_same_rows(dataset: Any) -> None:
    assert read_rows(dataset) == tuple(ROWS)


def test_a_saved_dataset_is_read_from_its_folder(tmp_path: Path) -> None:
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list([{"text": "t", "answer": "3"}])
    )
    both.save_to_disk(str(tmp_path / "saved"))
    assert read_rows(tmp_path / "saved", split="test") == ({"text": "t", "answer": "3"},)
    with pytest.raises(InputError, match="several splits: give split= one of 'train', 'test'"):
        read_rows(tmp_path / "saved")
    with pytest.raises(InputError, match="no split 'dev'"):
        read_rows(tmp_path / "saved", split="dev")


def test_cells_of_a_csv_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("id,answer\n007,NA\n", encoding="utf-8")
    assert read_rows(path) == ({"id": "007", "answer": "NA"},)


def test_limit_keeps_the_first_rows() -> None:
    assert read_rows(ROWS, limit=1) == (ROWS[0],)
    with pytest.raises(InputError, match="limit=0"):
        read_rows(ROWS, limit=0)


def test_reading_changes_nothing_of_the_users() -> None:
    rows = read_rows(ROWS)
    rows[0]["text"] = "changed"
    assert ROWS[0]["text"] == "first, with a comma"


@pytest.mark.parametrize(
    ("dataset", "complaint"),
    [
        ([], "dataset 'data' is empty; give at least one row"),
        (datasets.Dataset.from_list([]), "is empty"),
        (["text"], "row 0 of the dataset is no dict but 'text'"),
        (3, "dataset of type int cannot be read"),
        ({"text": ["a", "b"], "id": [1, 2]}, "is a dict of columns .'text', 'id'.: give a list with one dict a row"),
        ({"text": ["a", "b"]}, "is a dict of columns"),
        ({"train": ROWS, "test": ROWS}, "several splits: give split= one of 'train', 'test'"),
        ((row for row in ROWS), "take as many rows as you want first"),
        ("nowhere/rows.jsonl", "there is no file nowhere"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_rows(dataset)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl, line 2 is no JSON"),
        ("a.json", '{"a": [1]}', "must hold a list of objects"),
        ("a.json", "[1", "is no JSON"),
        ("a.csv", "a,b\n1\n", "row 0 has another number of cells"),
        ("a.csv", "a,b\n1,2,3\n", "row 0 has another number of cells"),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.txt", "text", "is no file that can be read as rows"),
        ("a.jsonl", "", "is empty"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        read_rows(tmp_path / name)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one that datasets' save_to_disk wrote"):
        read_rows(tmp_path)


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        InputError, match=r"(?s)'some/where', split 'test' cannot be loaded: ConnectionError.*without a"
    ):
        read_rows("some/where", split="test")


def test_a_hub_name_is_loaded_with_its_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, subset: str | None, *, split: str | None) -> datasets.Dataset:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("openai/gsm8k", subset="main", split="test") == tuple(ROWS)
    assert asked == [("openai/gsm8k", "main", "test")]
    assert dataset_name("openai/gsm8k") == "gsm8k"


def test_a_split_of_rows_that_are_given_themselves_is_refused() -> None:
    with pytest.raises(InputError, match=r"split='train' has no effect on rows"):
        read_rows([{"q": "a"}], split="train")
    assert read_rows({"train": [{"q": "a"}]}, split="train") == ({"q": "a"},)
