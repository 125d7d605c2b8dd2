"""The study of the databases in `data`, which version 0.1.0 made; run as a script, it makes them again.

``python -m tests.storage.earlier_study FOLDER`` writes `finished.db` and `unfinished.db`, of a process that ended
without a word in the middle of its trials. Function and metric carry names, so that their source text does not count.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from llmsearch_optuna import Engine, SearchResult, search

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "willow")
SPACE = [
    {"max_new_tokens": 12, "repetition_penalty": FloatDistribution(1.0, 1.5)},
    {
        "max_new_tokens": 12,
        "do_sample": True,
        "temperature": FloatDistribution(0.1, 1.5),
        "top_p": CategoricalDistribution([0.8, 0.9, 1.0]),
    },
]
CALLS_UNTIL_DEATH = 38


class Writer:
    """Repeats words of the prompt, the more the nearer the temperature is to 0.5.

    Args:
        calls_left: After so many calls the process ends at once; None lets it live.
    """

    name = "earlier writer"
    __name__ = "earlier writer"

    def __init__(self, calls_left: int | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._calls_left = calls_left

    def __call__(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[str]:
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left < 0:
                os._exit(9)
        temperature = float(params.get("temperature", 1.0)) if params.get("do_sample") else 0.8
        known = str(sorted(params.items()))
        self.asked += [(prompt, dict(params)) for prompt in prompts]
        return [self._text(prompt, known, 0.9 - abs(temperature - 0.5)) for prompt in prompts]

    @staticmethod
    def _text(prompt: str, params: str, quality: float) -> str:
        words = prompt.split()[1:]
        return " ".join(w for i, w in enumerate(words) if _unit(f"{prompt}|{params}|{i}") < quality)


class ShareOfWords:
    """Share of the reference's words that the text holds."""

    name = "share of words"
    bounds = (0, 1)

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [
            len(set(p.split()) & set(r.split())) / len(set(r.split()))
            for p, r in zip(predictions, references, strict=True)
        ]


def run(database: Path, writer: Writer, **changes: Any) -> SearchResult:
    """Search, or go on with the study in this database."""
    rows = [
        {"words": " ".join(WORDS[(i + j * (1 + i % 5)) % 12] for j in range(3 + i % 4)) + f" {i}"} for i in range(40)
    ]
    arguments: dict[str, Any] = {
        "prompt": "Repeat: {words}",
        "reference": "words",
        "metric": ShareOfWords(),
        "baseline": {"max_new_tokens": 12},
        "n_trials": 10,
        "trials_in_flight": 2,
        "storage": f"sqlite:///{database}",
        "study_name": "earlier",
        "batch_size": 4,
        "progress": False,
    }
    return search(Engine.from_function(writer), rows, SPACE, **arguments | changes)


def _words(i: int) -> str:
    return " ".join(WORDS[(i + j * (1 + i % 5)) % 12] for j in range(3 + i % 4)) + f" {i}"


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _run_until_death(database: Path) -> None:
    run(database, Writer(CALLS_UNTIL_DEATH))


def _pack(database: Path) -> None:
    """One file without a log beside it, and without the name of the machine that made it."""
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("UPDATE llmsearch_workers SET host = 'elsewhere', pid = 1")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("VACUUM")
    connection.close()


def write(folder: Path) -> None:
    """Make both databases."""
    folder.mkdir(parents=True, exist_ok=True)
    run(folder / "finished.db", Writer())
    child = multiprocessing.Process(target=_run_until_death, args=(folder / "unfinished.db",))
    child.start()
    child.join()
    for name in ("finished", "unfinished"):
        _pack(folder / f"{name}.db")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
