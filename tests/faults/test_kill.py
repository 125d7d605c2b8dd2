"""A study that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.backends.function import params_of_replicate
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.search_result import SearchResult, load_result
from tests.faults.study_child import main

pytestmark = pytest.mark.faults

KILLS = 25


def signature(result: SearchResult) -> list[Any]:
    """Everything that a study is, but for times."""
    trials = [
        (
            t.number,
            t.state,
            t.value,
            t.params,
            t.intermediate_values,
            {k: v for k, v in t.user_attrs.items() if k not in ("seconds", "engine", "memory", "gpu_memory")},
            result.row_scores(t.number),
        )
        for t in result.trials
    ]
    looks = [(look.winner, look.trials, look.selection, look.verdict) for look in result.looks]
    return [trials, looks]


def start(database: Path | str, log: Path, *more: Any) -> Any:
    """A study in a process of its own, forked from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.study_child"])
    child = context.Process(target=main, args=(str(database), str(log), *more))
    child.start()
    return child


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def decoded(result: SearchResult) -> set[str]:
    """What the stored holds, as the engine's log writes it."""
    lines = set()
    for phase in ("search", "finalists", "holdout"):
        for number, records in result.opened.records.all_rows(phase).items():
            params = GenerationParams.of(result.trial_params(number))
            for r in records:
                prompt = result.items[r.row].prompt
                request = Request("", r.row, prompt, params, replicate=r.replicate)
                lines.add(f"{prompt}\t{params_of_replicate(request).fingerprint}")
    return lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], int]:
    """The uninterrupted study, and how many rows it decodes."""
    folder = tmp_path_factory.mktemp("whole")
    child = start(folder / "study.db", folder / "log")
    child.join(240)
    assert child.exitcode == 0
    return signature(load_result(str(folder / "study.db"))), len(lines(folder / "log"))


def kill_again_and_again(
    database: Path | str, log: Path, moments: random.Random, after: Sequence[int], *more: Any
) -> None:
    """Run one study to its end, and kill it whenever so many rows have been decoded in all, or shortly after.

    Rows measure how far a study is on any machine; what it does at that moment (walk, decode, commit, report, make a
    trial, decide) is left to the clock.
    """
    safe = set[str]()
    for rows in after:
        before = lines(log)
        child = start(database, log, *more)
        while child.is_alive() and len(lines(log)) < rows:
            time.sleep(0.005)
        child.join(moments.uniform(0.0, 0.1))
        assert child.exitcode is None, "it ended before it was to be killed"
        child.kill()
        child.join()
        assert not safe & set(lines(log)[len(before) :]), "a row that was safe has been decoded again"
        if tables_are_made(database):
            safe = decoded(load_result(str(database)))
    child = start(database, log, *more)
    child.join(240)
    assert child.exitcode == 0


def tables_are_made(database: Path | str) -> bool:
    try:
        return bool(load_result(str(database)).settings)
    except StudyError:  # killed while the study was made
        return False


def test_a_study_that_is_killed_again_and_again_equals_one_that_was_not(
    tmp_path: Path, whole: tuple[list[Any], int]
) -> None:
    study, rows = whole
    moments = random.Random(20240601)
    # Some before the first row, the others anywhere; the last rows are those of the verdict.
    after = [0, 0, 0, *sorted(moments.sample(range(1, rows - 60), KILLS - 6)), rows - 40, rows - 20, rows - 3]
    kill_again_and_again(tmp_path / "study.db", tmp_path / "log", moments, after)
    assert signature(load_result(str(tmp_path / "study.db"))) == study


def test_two_halves_that_judge_each_other_are_the_same_after_being_killed(tmp_path: Path) -> None:
    more = (10, "cross")
    child = start(tmp_path / "whole.db", tmp_path / "whole", *more)
    child.join(240)
    assert child.exitcode == 0
    rows = len(lines(tmp_path / "whole"))
    # The last rows are those of the winners on the half that has not chosen them.
    after = [rows // 3, rows - 190, rows - 100, rows - 40, rows - 2]
    kill_again_and_again(tmp_path / "study.db", tmp_path / "log", random.Random(1), after, *more)
    killed, whole = (load_result(str(tmp_path / name)) for name in ("study.db", "whole.db"))
    assert signature(killed) == signature(whole)
    assert killed.looks[-1].winners == whole.looks[-1].winners


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_one_line_that_says_how_to_go_on(
    tmp_path: Path, whole: tuple[list[Any], int], number: signal.Signals
) -> None:
    database, log = tmp_path / "study.db", tmp_path / "log"
    child = start(database, log)
    wait_for(lambda: len(lines(log)) > 20)
    begun = time.monotonic()
    os.kill(child.pid, number)
    child.join(30)
    assert time.monotonic() - begun < 10
    assert child.exitcode == 3
    said = log.with_suffix(".said").read_text()
    assert "Run the same command again" in said
    assert said.count("\n") == 0
    child = start(database, log)
    child.join(240)
    assert child.exitcode == 0
    assert signature(load_result(str(database))) == whole[0]
