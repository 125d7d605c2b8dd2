"""Workers that a parent starts, watches and ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsearch_optuna import progress
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.result import load_result
from llmsearch_optuna.study.interruption import StudyInterrupted
from llmsearch_optuna.workers.processes import search_with_workers
from tests.faults.study_child import study_arguments
from tests.faults.test_kill import lines, signature, start, wait_for
from tests.test_search import Recorder

# slow: they depend on how fast processes end, which a busy machine does not keep to; `make test-all` runs them.
pytestmark = [pytest.mark.faults, pytest.mark.slow]

TRIALS = 24


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("alone")
    child = start(folder / "study.db", folder / "log", TRIALS)
    child.join(200)
    assert child.exitcode == 0
    return signature(load_result(str(folder / "study.db")))


class AtTrial(Recorder):
    """Does something as soon as the trial with a number has ended."""

    def __init__(self, number: int, then: Callable[[], object]) -> None:
        super().__init__()
        self._number, self._then = number, then

    def on(self, event: progress.Event) -> None:
        super().on(event)
        if isinstance(event, progress.TrialEnded) and event.number == self._number:
            self._then()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def arguments(folder: Path, n_trials: int = TRIALS) -> dict[str, Any]:
    return study_arguments(str(folder / "study.db"), str(folder / "log"), n_trials)


def test_four_workers_make_the_study_that_one_process_makes(tmp_path: Path, alone: list[Any]) -> None:
    told = Recorder()
    result = search_with_workers(arguments(tmp_path), 4, told)
    assert signature(result) == alone
    assert set(Counter(lines(tmp_path / "log")).values()) == {1}, "a row was decoded twice"
    assert isinstance(told.events[0], progress.StudyStarted)
    assert isinstance(told.events[-1], progress.StudyEnded)
    ended = [event.number for event in told.events if isinstance(event, progress.TrialEnded)]
    assert sorted(ended) == list(range(TRIALS))
    assert workers_of(psutil.Process()) == []


def test_a_worker_that_is_killed_is_named_and_the_others_go_on(
    tmp_path: Path, alone: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    observer = AtTrial(5, lambda: workers_of(psutil.Process())[0].kill())
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        assert signature(search_with_workers(arguments(tmp_path), 3, observer)) == alone
    (said,) = [record.getMessage() for record in caplog.records if "has ended" in record.getMessage()]
    assert "killed by SIGKILL" in said
    assert said.endswith("the others go on")


def test_when_no_worker_is_left_the_parent_says_so_and_the_same_call_goes_on(tmp_path: Path, alone: list[Any]) -> None:
    def kill_all() -> None:
        for worker in workers_of(psutil.Process()):
            worker.kill()

    with pytest.raises(StudyError, match="no worker is left .worker 1: it was killed by SIGKILL.*run the same command"):
        search_with_workers(arguments(tmp_path), 2, AtTrial(7, kill_all))
    assert 8 <= sum(t.state.is_finished() for t in load_result(str(tmp_path / "study.db")).trials) < TRIALS
    assert signature(search_with_workers(arguments(tmp_path), 2, Recorder())) == alone


def test_what_no_worker_can_do_is_said_once_and_in_words(tmp_path: Path) -> None:
    wrong = arguments(tmp_path) | {"space": {"temperature": 0.7}}
    with pytest.raises(StudyError) as caught:
        search_with_workers(wrong, 2, Recorder())
    assert "max_new_tokens" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_interrupted_parent_ends_its_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    observer = AtTrial(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StudyInterrupted, match="of 24 trials; all finished rows are safe.*Run the same command again"):
        search_with_workers(arguments(tmp_path), 2, observer)
    assert workers_of(psutil.Process()) == []


def search_quietly(folder: str) -> None:
    search_with_workers(arguments(Path(folder)), 2, progress.Quiet())


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=search_quietly, args=(str(tmp_path),))
    parent.start()
    assert parent.pid is not None
    wait_for(lambda: len(lines(tmp_path / "log")) > 20)
    orphans = workers_of(psutil.Process(parent.pid))
    assert len(orphans) == 2
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert alive == []


def test_workers_without_anything_to_do_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        search_with_workers(arguments(tmp_path, 3) | {"trials_in_flight": 1}, 2, Recorder())
    assert "only 1 of 2 workers will have something to do" in caplog.text
