"""Workers that a parent starts, watches and ends."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsearch_optuna import progress
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.workers import processes
from llmsearch_optuna.workers.processes import SECONDS_TO_END, search_with_workers
from tests.faults.study_child import SlowEngine, study_arguments
from tests.faults.test_kill import lines, signature, start, wait_for
from tests.optimize.studies import Recorder

pytestmark = pytest.mark.faults

TRIALS = 16


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is to see a trial's end while the study goes on, which takes a second or two."""
    monkeypatch.setattr(processes, "LOOK_EVERY_SECONDS", 0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("alone")
    child = start(folder / "study.db", folder / "log", TRIALS)
    child.join(200)
    assert child.exitcode == 0
    return signature(load_result(str(folder / "study.db")))


class Acting(Recorder):
    """Does something once, as soon as it is told of an event for the so many-th time."""

    def __init__(self, kind: type[progress.Event], times: int, then: Callable[[], object]) -> None:
        super().__init__()
        self._kind, self._left, self._then = kind, times, then

    def on(self, event: progress.Event) -> None:
        super().on(event)
        self._left -= isinstance(event, self._kind)
        if isinstance(event, self._kind) and self._left == 0:
            self._then()


def workers() -> list[multiprocessing.process.BaseProcess]:
    """Those that this process has started, and that have not ended."""
    return [child for child in multiprocessing.active_children() if child.name.startswith("llmsearch-worker")]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


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
    assert workers() == []


def test_workers_make_the_halves_that_one_process_makes(tmp_path: Path) -> None:
    found = []
    for count in (1, 3):
        told = Recorder()
        asked = study_arguments(str(tmp_path / f"{count}.db"), None, 10, "cross")
        found.append(signature(search_with_workers(asked, count, told)))
        (verdict,) = [event for event in told.events if isinstance(event, progress.VerdictStarted)]
        assert (verdict.rows, verdict.halves) == (60, True)
    assert found[0] == found[1]


def test_a_worker_that_is_killed_is_named_and_the_others_go_on(
    tmp_path: Path, alone: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    observer = Acting(progress.TrialEnded, 5, lambda: workers()[0].kill())
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        assert signature(search_with_workers(arguments(tmp_path), 3, observer)) == alone
    (said,) = [record.getMessage() for record in caplog.records if "killed by SIGKILL" in record.getMessage()]
    # Which of the two it says depends on whether it still sees another one at work.
    assert said.endswith(("the others go on", "the others did its part"))


def test_when_no_worker_is_left_the_parent_says_so_and_the_same_call_goes_on(tmp_path: Path, alone: list[Any]) -> None:
    def kill_all() -> None:
        for worker in workers():
            worker.kill()

    with pytest.raises(StudyError, match="no worker is left .worker 1: it was killed by SIGKILL.*run the same command"):
        search_with_workers(arguments(tmp_path), 2, Acting(progress.TrialEnded, 5, kill_all))
    assert 5 <= sum(t.state.is_finished() for t in load_result(str(tmp_path / "study.db")).trials) < TRIALS
    assert signature(search_with_workers(arguments(tmp_path), 2, Recorder())) == alone


def test_what_no_worker_can_do_is_said_once_and_in_words(tmp_path: Path) -> None:
    wrong = arguments(tmp_path) | {"space": {"temperature": 0.7}}
    with pytest.raises(StudyError) as caught:
        search_with_workers(wrong, 2, Recorder())
    assert "max_new_tokens" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (progress.StudyStarted, 1),  # other workers are still loading
        (progress.RowsScored, 3),
        (progress.TrialEnded, 4),
        (progress.VerdictStarted, 1),
    ],
)
def test_an_interrupted_parent_ends_its_workers_says_how_to_go_on_and_goes_on(
    tmp_path: Path, alone: list[Any], kind: type[progress.Event], times: int
) -> None:
    with pytest.raises(
        StudyInterrupted, match=f"of {TRIALS} trials; all finished rows are safe.*Run the same command again"
    ):
        search_with_workers(arguments(tmp_path), 2, Acting(kind, times, interrupt))
    assert workers() == []
    assert signature(search_with_workers(arguments(tmp_path), 2, Recorder())) == alone


def test_a_parent_that_is_interrupted_before_it_has_workers_begins_later(tmp_path: Path, alone: list[Any]) -> None:
    class Late(progress.Quiet):
        """Interrupts when the arguments are pickled for the first worker."""

        def __reduce__(self) -> tuple[type[progress.Quiet], tuple[()]]:
            interrupt()
            return progress.Quiet, ()

    with pytest.raises(StudyInterrupted, match="Run the same command again"):
        search_with_workers(arguments(tmp_path) | {"postprocess": Late()}, 2, Recorder())
    assert workers() == []
    assert signature(search_with_workers(arguments(tmp_path), 2, Recorder())) == alone


def test_a_worker_that_does_not_end_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def suspend_and_interrupt() -> None:
        for worker in workers():
            psutil.Process(worker.pid).suspend()
        interrupt()

    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.5)
    with pytest.raises(StudyInterrupted), caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        search_with_workers(arguments(tmp_path), 2, Acting(progress.TrialEnded, 3, suspend_and_interrupt))
    said = [record.getMessage() for record in caplog.records if "is killed" in record.getMessage()]
    assert [text.split(" has")[0] for text in said] == ["worker 1", "worker 2"]
    assert workers() == []


class NeverApart(SlowEngine):
    """Once in a worker, it keeps the interpreter from ever being taken apart, as much loaded code does for seconds."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        atexit.register(time.sleep, 600)


def test_a_worker_that_is_interrupted_does_not_take_the_interpreter_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = arguments(tmp_path) | {"model": NeverApart(log=str(tmp_path / "log"))}
    with pytest.raises(StudyInterrupted), caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        search_with_workers(given, 2, Acting(progress.TrialEnded, 3, interrupt))
    assert "is killed" not in caplog.text
    assert workers() == []


@pytest.mark.parametrize("after", [0, 1, 30, 60, 90, 120, 180, 240])
def test_a_worker_that_is_told_to_end_ends_at_once(tmp_path: Path, after: int) -> None:
    """At many places of a study, since where it is at that moment is up to the clock."""
    child = start(tmp_path / "study.db", tmp_path / "log", TRIALS)
    wait_for(lambda: len(lines(tmp_path / "log")) >= after)
    child.terminate()
    child.join(SECONDS_TO_END)
    assert child.exitcode is not None, "it has not noticed"


def search_quietly(folder: str) -> None:
    search_with_workers(arguments(Path(folder)), 2, progress.Quiet())


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=search_quietly, args=(str(tmp_path),))
    parent.start()
    assert parent.pid is not None
    wait_for(lambda: len(lines(tmp_path / "log")) > 20)
    orphans = [child for child in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(orphans) == 2
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert alive == []


def test_workers_without_anything_to_do_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        search_with_workers(arguments(tmp_path, 3) | {"trials_in_flight": 1}, 2, Recorder())
    assert "only 1 of 2 workers will have something to do" in caplog.text
