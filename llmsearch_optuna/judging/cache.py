"""Judgements that were made, in this process and, where a file is given, in all that share it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmsearch_optuna.errors import InputError

_TABLE = "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, said TEXT NOT NULL)"
_WAIT_SECONDS = 30.0
_AT_ONCE = 500


@dataclass
class JudgementCache:
    """What judges said, by a key that names judge, prompt and repetition.

    Attributes:
        path: An SQLite file; None keeps everything in the memory only.

    Raises:
        InputError: The file cannot be opened, or is no SQLite file.
    """

    path: Path | None = None
    _known: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            with self._opened(self.path):
                pass
        except (sqlite3.Error, OSError, ValueError) as problem:
            raise InputError(
                f"cache={str(self.path)!r} cannot be used: {problem}; give a file that may be written"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Return what is known of these keys."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if self.path is not None and missing:
            with self._opened(self.path) as file:
                for first in range(0, len(missing), _AT_ONCE):
                    some = missing[first : first + _AT_ONCE]
                    marks = ", ".join("?" * len(some))
                    self._known.update(
                        file.execute(f"SELECT key, said FROM judgements WHERE key IN ({marks})", some).fetchall()
                    )
        return {key: self._known[key] for key in keys if key in self._known}

    def put(self, said: Mapping[str, str]) -> None:
        """Remember; what is known already stays as it is."""
        if self.path is not None and said:
            with self._opened(self.path) as file:
                file.executemany("INSERT OR IGNORE INTO judgements VALUES (?, ?)", list(said.items()))
        for key, text in said.items():
            self._known.setdefault(key, text)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as file, file:
            file.execute(_TABLE)
            yield file
