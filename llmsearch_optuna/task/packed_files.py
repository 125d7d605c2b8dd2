"""Opens data files as they lie on a disk: packed or not, as bytes, or as text in the encoding that they say."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from pathlib import Path
from typing import IO, Any, cast

from llmsearch_optuna.errors import InputError

PACKED = (".gz", ".bz2", ".xz", ".zip")
"""What a packed file's name ends with."""

_HEAD = 1000
_MARKS = (  # UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What files begin with that say their encoding; Excel's "Unicode text" is UTF-16."""


def unpacked_name(path: Path) -> Path:
    """Return the name of what is packed: ``rows.jsonl`` for ``rows.jsonl.gz``."""
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


def open_bytes(path: Path) -> IO[bytes]:
    """Open what a file holds; of a zip the only file in it.

    Raises:
        InputError: A zip holds several files, or none.
    """
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path))
        case ".bz2":
            return cast("IO[bytes]", bz2.open(path))
        case ".xz":
            return cast("IO[bytes]", lzma.open(path))
        case ".zip":
            return zipfile.ZipFile(path).open(only_name(path))
    return path.open("rb")


def open_text(path: Path, *, newline: str | None = None) -> IO[str]:
    """Open a file as text, in the encoding that its first bytes say; UTF-8 where they say nothing.

    Raises:
        InputError: It holds zero bytes, as no text in UTF-8 does.
    """
    packed = io.BufferedReader(cast(Any, open_bytes(path)))
    head = packed.peek(_HEAD)[:_HEAD]
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in head:
        packed.close()
        raise InputError(
            f"{path} cannot be read: it holds zero bytes, so it is no text, or UTF-16 without its mark; save it as "
            "UTF-8"
        )
    return io.TextIOWrapper(packed, encoding=encoding, newline=newline)


def only_name(path: Path) -> str:
    """Return the name of the file in a zip, but for what a Mac puts beside it.

    Raises:
        InputError: There are several, or none.
    """
    with zipfile.ZipFile(path) as archive:
        files = [member.filename for member in archive.infolist() if not member.is_dir()]
    names = [name for name in files if not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")]
    if len(names) != 1:
        raise InputError(f"{path} holds {len(names)} files, and one is read; unpack it, and give the file or folder")
    return names[0]
