"""Files as people have them: packed, in folders, by a pattern, and under names of other formats."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
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


TABLE = "question,answer\nWie heißt du?,„Zoë“\n日本,は\n"
AS_ROWS = ({"question": "Wie heißt du?", "answer": "„Zoë“"}, {"question": "日本", "answer": "は"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("opening", [open, gzip.open])
def test_the_first_bytes_of_a_file_may_say_its_encoding(tmp_path: Path, encoding: str, opening) -> None:
    end = "" if opening is open else ".gz"
    for name, text in (
        ("rows.csv", TABLE),
        ("rows.tsv", TABLE.replace(",", "\t")),
        ("rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in AS_ROWS)),
        ("rows.json", json.dumps(AS_ROWS, ensure_ascii=False)),
    ):
        with opening(tmp_path / f"{name}{end}", "wt", encoding=encoding) as file:
            file.write(text)
        assert read_rows(tmp_path / f"{name}{end}") == AS_ROWS, name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\nWie heißt du?,Zoë\n".encode("latin-1"), "the byte 0xdf is no UTF-8.*iconv"),
        (TABLE.encode("utf-16-le"), "zero bytes.*UTF-16"),
        (b"PK\x03\x04\x00\x00 an xlsx by its name", "zero bytes"),
        (TABLE.encode("utf-16")[:-1], "cannot be read"),
        (b"question,answer\n" + b"x" * 100_000 + b",\xff\n", "0xff is no UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_a_file_in_another_encoding_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, said: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said if name == "rows.csv" else "rows"):
        read_rows(path)


def test_the_only_file_in_a_zip_is_read(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_csv(tmp_path / "rows.csv.zip", index=False)
    assert [row["n"] for row in read_rows(tmp_path / "rows.csv.zip")] == ["1", "2", "3"]
    assert dataset_name(tmp_path / "rows.csv.zip") == "rows"
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("folder/rows.jsonl", LINES)
        archive.writestr("__MACOSX/folder/._rows.jsonl", b"\x00\x05\x16\x07")
        archive.writestr("folder/.DS_Store", b"\x00")
    assert read_rows(tmp_path / "data.zip") == tuple(ROWS)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.write(tmp_path / "rows.parquet", "rows.parquet")
    assert read_rows(tmp_path / "table.zip") == tuple(ROWS)


def test_zips_and_archives_that_are_not_read_say_what_to_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("about.md", "about")
    (tmp_path / "broken.csv.zip").write_bytes(b"PK no zip")
    for name in ("rows.tar", "rows.tar.gz", "rows.tgz", "rows.csv.zst", "rows.7z"):
        (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    for name, said in {
        "two.csv.zip": "holds 2 files.*unpack",
        "none.zip": "no file that can be read",
        "broken.csv.zip": "cannot be read",
        "rows.tar": "an archive: unpack it",
        "rows.tar.gz": "an archive: unpack it",
        "rows.tgz": "an archive: unpack it",
        "rows.csv.zst": "an archive: unpack it",
        "rows.7z": "an archive: unpack it",
        "rows.xlsx": "pandas.read_excel",
    }.items():
        with pytest.raises(InputError, match=said):
            read_rows(tmp_path / name)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "a\n1\n")
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # the flag of encryption, in the file's own header and in the central directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="cannot be unpacked: .*password"):
        read_rows(path)


def test_a_parquet_in_a_gzip_is_read(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    with gzip.open(tmp_path / "rows.parquet.gz", "wb") as file:
        file.write((tmp_path / "rows.parquet").read_bytes())
    assert read_rows(tmp_path / "rows.parquet.gz") == tuple(ROWS)


def test_an_address_of_data_shows_no_password() -> None:
    with pytest.raises(InputError) as caught:
        read_rows("https://ann:hunter2@127.0.0.1:9/rows.csv")
    assert "hunter2" not in str(caught.value)
