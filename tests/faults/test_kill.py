"""A study that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.decoding.one_method import params_of_replicate
from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.decoding.requests import Request
from llmsearch_optuna.result import SearchResult, load_result

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


def signature(result: SearchResult) -> list[Any]:
    """Everything that a study is, but for times."""
    trials = [
        (
            t.number,
            t.state,
            t.value,
            t.params,
            t.intermediate_values,
            {k: v for k, v in t.user_attrs.items() if k not in ("seconds", "engine")},
            result.row_scores(t.number),
        )
        for t in result.trials
    ]
    looks = [(look.winner, look.trials, look.selection, look.verdict) for look in result.looks]
    return [trials, looks]


def start(database: Path, log: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.study_child", str(database), str(log), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def decoded(result: SearchResult) -> set[str]:
    """What the ledger holds, as the engine's log writes it."""
    lines = set()
    for phase in ("search", "finalists", "holdout"):
        for number, records in result.opened.ledger.all_rows(phase).items():
            params = GenerationParams.of(result.trial_params(number))
            for r in records:
                prompt = result.items[r.row].prompt
                request = Request("", r.row, prompt, params, replicate=r.replicate)
                lines.add(f"{prompt}\t{params_of_replicate(request).fingerprint}")
    return lines


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("whole")
    child = start(folder / "study.db", folder / "log")
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    return signature(load_result(str(folder / "study.db")))


def test_a_study_that_is_killed_again_and_again_equals_one_that_was_not(
    tmp_path: Path, uninterrupted: list[Any]
) -> None:
    database, log = tmp_path / "study.db", tmp_path / "log"
    moments = random.Random(20240601)
    kills, safe = 0, set()
    while True:
        before = len(log.read_text().splitlines()) if log.exists() else 0
        child = start(database, log)
        begun = time.monotonic()
        # The first second or two go into imports.
        while child.poll() is None and (len(log.read_text().splitlines()) if log.exists() else 0) == before:
            time.sleep(0.01)
            assert time.monotonic() - begun < 60
        if child.poll() is None:
            time.sleep(moments.uniform(0.0, 0.6))
        if child.poll() is not None:
            _, errors = child.communicate()
            assert child.returncode == 0, errors
            break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
        new = log.read_text().splitlines()[before:]
        assert not safe & set(new), "a row that was safe has been decoded again"
        safe = decoded(load_result(str(database)))
    assert kills >= 5
    assert not safe & set(log.read_text().splitlines()[before:])
    assert signature(load_result(str(database))) == uninterrupted


def test_sigterm_ends_with_one_line_that_says_how_to_go_on(tmp_path: Path, uninterrupted: list[Any]) -> None:
    database, log = tmp_path / "study.db", tmp_path / "log"
    child = start(database, log)
    while not log.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    said, errors = child.communicate(timeout=30)
    assert child.returncode == 3, errors
    assert "Run the same command again" in said
    assert "Traceback" not in errors
    child = start(database, log)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert signature(load_result(str(database))) == uninterrupted
