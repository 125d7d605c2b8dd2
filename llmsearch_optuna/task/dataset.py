"""A user's data of any kind, read into plain rows: one dict a row, in the order of the data.

Files, data frames, lists and datasets of the hub end up the same. What the columns mean is not known here.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import glob
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.task.packed_files import only_name, open_bytes, open_text, unpacked_name

Row = dict[str, Any]

_READ_AS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


_UNPACKED_ELSEWHERE = frozenset({".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".zst", ".lz4"})
_READ_BY_PANDAS = {
    ".xlsx": "read_excel",
    ".xls": "read_excel",
    ".ods": "read_excel",
    ".feather": "read_feather",
    ".orc": "read_orc",
    ".pkl": "read_pickle",
    ".xml": "read_xml",
    ".txt": "read_csv",
}
_LONGEST_CELL = (1 << 31) - 1
"""The csv module's own limit is 131,072 letters."""


@dataclass(frozen=True)
class Table:
    """The rows of a dataset, and what is known of its columns.

    Attributes:
        rows: One dict a row.
        class_names: Column -> the names that its numbers stand for, where it holds class labels.
    """

    rows: tuple[Row, ...]
    class_names: Mapping[str, Sequence[str]]


def read_rows(
    dataset: Any, *, split: str | None = None, subset: str | None = None, limit: int | None = None
) -> tuple[Row, ...]:
    """Return the rows of a dataset.

    Args:
        dataset: A ``datasets.Dataset`` (or a dict of them with ``split``), a list of dicts, a pandas DataFrame, the
            path of a .jsonl, .json, .csv, .tsv or .parquet file (also packed: .gz, .bz2, .xz, .zip), of a folder of
            such files or of one that ``save_to_disk`` wrote, a pattern such as ``data/*.jsonl``, or the name of a
            dataset on the Hugging Face hub. Cells of a .csv are texts, as they stand in the file.
        split: Which split of a dataset that has several.
        subset: Which configuration of a hub dataset that has several (gsm8k's ``main``).
        limit: Keep only the first so many rows.

    Raises:
        InputError: There is no such file or dataset, it cannot be read, or it has no rows.
    """
    return read_table(dataset, split=split, subset=subset, limit=limit).rows


def read_table(dataset: Any, *, split: str | None = None, subset: str | None = None, limit: int | None = None) -> Table:
    """Return the rows of a dataset with what it says of its columns; arguments and errors are those of `read_rows`."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit={short(limit)} must be a whole number from 1 on")
    found = _load(dataset, split, subset) if isinstance(dataset, str | Path) else dataset
    if split is not None and found is dataset and not isinstance(found, Mapping):
        raise InputError(f"split={split!r} has no effect on rows that are given themselves; leave it out")
    part = _one_split(found, split)
    rows = _listed(part)
    if limit is not None:
        rows = rows[:limit]
    if not rows:
        raise InputError(f"the dataset {dataset_name(dataset)!r} is empty; give at least one row")
    return Table(tuple(rows), _class_names(part))


def _class_names(part: Any) -> dict[str, Sequence[str]]:
    features = getattr(part, "features", None)
    if not isinstance(features, Mapping):
        return {}
    return {str(c): list(f.names) for c, f in features.items() if type(f).__name__ == "ClassLabel"}


def dataset_name(dataset: Any) -> str:
    """Return a short name for a dataset: the file's or the hub's, ``"data"`` where it has none."""
    if isinstance(dataset, str | Path):
        path = Path(dataset)
        path = unpacked_name(path) if _kind_of(path) is not None else path
        return path.stem if path.suffix in _READ_AS else path.name
    known = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return str(known) if known else "data"


def missing_column(name: str, columns: Iterable[str], where: str) -> InputError:
    """Return the error for a column that is not there: it names the nearest one and all there are."""
    known = list(columns)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(f"{where}: there is no column {name!r}{hint} The columns are {', '.join(map(repr, known))}.")


def _load(dataset: str | Path, split: str | None, subset: str | None) -> Any:
    if not str(dataset).strip():
        raise InputError(f"dataset={str(dataset)!r} names no file and no dataset")
    try:
        path = Path(dataset).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as problem:  # too long for a name, ~ of nobody
        raise InputError(f"dataset={short(str(dataset))} cannot be looked for: {problem}") from None
    if is_folder:
        return _from_folder(path)
    is_pattern = glob.has_magic(str(path)) and not is_file
    if not is_pattern and (is_file or _kind_of(path) is not None):
        return _read_file(path)
    if is_pattern:
        return _read_files([Path(found) for found in sorted(glob.glob(str(path), recursive=True))], str(path))
    return _from_hub(str(dataset), split, subset)


def _kind_of(path: Path) -> str | None:
    """How a file is read, by its name: ``rows.jsonl.gz`` as ``rows.jsonl``; None where that is not known."""
    return _READ_AS.get(unpacked_name(path).suffix.lower())


def _read_file(path: Path) -> Any:
    if not path.is_file() and _kind_of(path) is not None:
        raise InputError(f"there is no file {path} (looked for from {Path.cwd()})")
    with _read_errors(path):
        kind = _kind_of(path) or _kind_in_zip(path)
        if kind is None:
            raise InputError(f"{path} is no file that can be read as rows; {_what_reads(path)}")
        return {"lines": _read_lines, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet}[kind](path)


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Say in words what files of any kind raise, and what to do where they are in another encoding."""
    try:
        yield
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{path} cannot be read: {_shown_byte(problem)} is no UTF-8, and nothing says what it is instead. Where it "
            f"came from Excel or an old program: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from problem
    except (OSError, EOFError, csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from problem
    except (NotImplementedError, RuntimeError) as problem:  # a zip with a password, or packed in an unknown way
        raise InputError(f"{path} cannot be unpacked: {problem}; unpack it, and give the file in it") from problem


def _shown_byte(problem: UnicodeDecodeError) -> str:
    return f"the byte 0x{problem.object[problem.start]:02x}"


def _what_reads(path: Path) -> str:
    """What to do with a file of another kind."""
    suffix = path.suffix.lower()
    if suffix in _UNPACKED_ELSEWHERE or path.with_suffix("").suffix.lower() == ".tar":
        return "it is an archive: unpack it, and give the file or the folder in it"
    if suffix in _READ_BY_PANDAS:
        return f"give what pandas reads of it: dataset=pandas.{_READ_BY_PANDAS[suffix]}({path.name!r}, ...)"
    return f"give one of {', '.join(_READ_AS)}, also with .gz or .zip"


def _kind_in_zip(path: Path) -> str | None:
    """How the only file in a zip is read; None where this is no zip."""
    if path.suffix.lower() != ".zip":
        return None
    return _READ_AS.get(Path(only_name(path)).suffix.lower())


def _read_files(paths: Sequence[Path], pattern: str) -> list[Any]:
    """The rows of several files, in the order of their names."""
    readable = [path for path in paths if path.is_file() and _kind_of(path) is not None]
    if not readable:
        raise InputError(f"{pattern}: there is no file that can be read as rows ({', '.join(_READ_AS)})")
    return [row for path in readable for row in _read_file(path)]


def _from_folder(path: Path) -> Any:
    """What `save_to_disk` wrote, else the files in the folder."""
    if any((path / name).is_file() for name in ("dataset_info.json", "state.json", "dataset_dict.json")):
        return _from_disk(path)
    return _read_files(sorted(path.iterdir()), f"{path} is a folder, but not one that datasets' save_to_disk wrote")


def _read_lines(path: Path) -> list[Any]:
    with open_text(path) as file:
        return _rows_of_lines(file, path)


def _rows_of_lines(lines: Iterable[str], path: Path) -> list[Any]:
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _read_json(path: Path) -> Any:
    """A list of objects, or one object a line, as `Dataset.to_json` writes into files of this name."""
    with open_text(path) as file:
        text = file.read()
    try:
        rows = json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested too deep") from None
    except ValueError as problem:
        first, _, rest = text.strip().partition("\n")
        if not rest or not _is_object(first):
            raise InputError(f"{path} is no JSON: {problem}") from None
        return _rows_of_lines(text.split("\n"), path)
    if isinstance(rows, dict) and rows and not any(isinstance(value, list | dict) for value in rows.values()):
        return [rows]  # one object on one line
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of objects, one a row, but holds a {type(rows).__name__}")
    return rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{where} is nested too deep") from None
    except ValueError as problem:
        raise InputError(f"{where} is no JSON: {problem}") from None


def _read_csv(path: Path) -> list[Row]:
    delimiter = "\t" if unpacked_name(path).suffix.lower() == ".tsv" else ","
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        with open_text(path, newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            heading = list(reader.fieldnames or ())
            twice = sorted({column for column in heading if heading.count(column) > 1})
            if twice:
                raise InputError(
                    f"{path}: several columns are called {', '.join(map(repr, twice))}; rename all but one"
                )
            rows = list(reader)
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} has another number of cells than the heading")
    return [dict(row) for row in rows]


def _read_parquet(path: Path) -> Any:
    import pyarrow  # type: ignore[import-untyped]

    try:
        import pyarrow.parquet  # type: ignore[import-untyped]

        if unpacked_name(path) == path:
            return pyarrow.parquet.read_table(path).to_pylist()
        with open_bytes(path) as file:
            return pyarrow.parquet.read_table(io.BytesIO(file.read())).to_pylist()
    except pyarrow.ArrowException as problem:
        raise InputError(f"{path} cannot be read: {problem}") from problem


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as problem:
        raise InputError(
            f"{path} is a folder, but not one that datasets' save_to_disk wrote ({problem}); give a file in it"
        ) from problem


def _from_hub(name: str, split: str | None, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as problem:
        where = f"{name!r}" + (f", subset {subset!r}" if subset else "") + (f", split {split!r}" if split else "")
        raise InputError(
            f"the dataset {where} cannot be loaded: {type(problem).__name__}: {problem}\n"
            "It is no file here, so it was looked for on the Hugging Face hub. Check the name and split=; without a "
            "network give the path of a .jsonl, .csv or .parquet file, or a folder made with save_to_disk."
        ) from problem


def _one_split(found: Any, split: str | None) -> Any:
    """Pick the split of a dict of datasets; anything else is returned as it is."""
    if not isinstance(found, Mapping):
        return found
    if split is not None and split in found:
        return found[split]
    if split is None and len(found) == 1 and _are_rows(only := next(iter(found.values()))):
        return only
    if not all(map(_are_rows, found.values())):
        raise InputError(
            f"the dataset is a dict of columns ({', '.join(map(repr, found))}): give a list with one dict a row, or "
            "datasets.Dataset.from_dict(...) of it"
        )
    wanted = f"has no split {split!r}" if split is not None else "has several splits"
    raise InputError(f"the dataset {wanted}: give split= one of {', '.join(map(repr, found))}")


def _are_rows(part: Any) -> bool:
    """Whether this is a dataset or a list of rows, and not a column."""
    if hasattr(part, "columns") or hasattr(part, "column_names"):
        return True
    return (
        isinstance(part, Sequence) and not isinstance(part, str | bytes) and isinstance(next(iter(part), {}), Mapping)
    )


def _listed(found: Any) -> list[Row]:
    if hasattr(found, "to_dict") and hasattr(found, "columns"):  # pandas
        headings = [str(column) for column in found.columns]
        if twice := sorted({heading for heading in headings if headings.count(heading) > 1}):
            named = ", ".join(map(repr, twice))
            raise InputError(f"several columns of the DataFrame are called {named}; rename all but one")
        found = found.to_dict("records")
    elif hasattr(found, "to_list") and hasattr(found, "column_names"):  # datasets
        found = found.to_list()
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise InputError(
            f"dataset of type {type(found).__name__} cannot be read: give a list of dicts, a datasets.Dataset, a "
            "DataFrame, a path or a hub name (of a stream take as many rows as you want first)"
        )
    for number, row in enumerate(found):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} of the dataset is no dict but {short(row)}")
    return [{str(name): value for name, value in row.items()} for row in found]
