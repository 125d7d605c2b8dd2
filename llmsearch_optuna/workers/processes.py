"""Workers as processes of this machine: started together, watched, and ended together.

They share nothing but the study's database, so one that dies takes only its own time with it: the others take its
trials over, with the rows that it had finished.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from llmsearch_optuna.optimize.signals import interruptible, stop_if_asked, stoppable
from llmsearch_optuna.options import for_workers
from llmsearch_optuna.progress import Callback
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.workers.devices import environment, usable_cores, visible_gpus
from llmsearch_optuna.workers.study_watcher import StudyWatcher
from llmsearch_optuna.workers.supervisor import LOOK_EVERY_SECONDS, SECONDS_TO_END, pass_on, search_watched
from llmsearch_optuna.workers.worker import Logged, work

logger = logging.getLogger("llmsearch_optuna.workers")


def search_with_workers(arguments: Mapping[str, Any], workers: int, observer: Callback) -> SearchResult:
    """Run a study in several processes of this machine; it comes out as from one.

    Args:
        arguments: Of `search`; they must be picklable, and name the study.
        workers: How many processes.
        observer: Is told what happens in the study.

    Raises:
        StudyError: Every worker has ended before the study was complete; says why.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    return search_watched(arguments, workers, observer, functools.partial(_placed, arguments, workers))


@contextlib.contextmanager
def _placed(arguments: Mapping[str, Any], workers: int, watcher: StudyWatcher) -> Iterator[_Crew]:
    with interruptible(watcher.resume_hint), _started(arguments, workers) as crew:
        yield _Crew(crew)


@dataclass(eq=False)
class _Worker:
    """A process at work.

    Attributes:
        number: From 1, for people.
        process: The process.
        line: What it sends: what is `Logged`, and a text when it cannot go on.
        problem: That text.
    """

    number: int
    process: SpawnProcess
    line: Connection
    problem: str | None = None

    def listen(self, told: set[Logged]) -> None:
        """Pass on what it has to say; what another worker has said already is dropped."""
        with contextlib.suppress(EOFError, OSError):  # it was killed while it spoke, or has nothing more to say
            while self.line.poll():
                said = self.line.recv()
                if not isinstance(said, Logged):
                    self.problem = said
                else:
                    pass_on(said, told)

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.exitcode is not None

    def how_it_ended(self) -> str | None:
        """Why it is no longer at work; None where it has done its part."""
        code = self.process.exitcode
        if not code:
            return None
        if code > 0:
            return self.problem or f"it ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = "; if nobody did that, the machine's memory ran out" if name == "SIGKILL" else ""
        return f"it was killed by {name}{hint}"


@dataclass(frozen=True)
class _Crew:
    """The processes of one study."""

    workers: Sequence[_Worker]
    told: set[Logged] = field(default_factory=set)

    def wait(self, at_work: Sequence[_Worker]) -> None:
        """Return when a process has ended, or after `LOOK_EVERY_SECONDS`."""
        with stoppable():
            wait([worker.process.sentinel for worker in at_work], timeout=LOOK_EVERY_SECONDS)

    def listen(self, at_work: Sequence[_Worker]) -> None:
        """Pass on what these processes have said."""
        for worker in at_work:
            worker.listen(self.told)


@contextlib.contextmanager
def _started(arguments: Mapping[str, Any], workers: int) -> Iterator[list[_Worker]]:
    """The workers at work; whatever happens, none is left behind."""
    crew: list[_Worker] = []
    try:
        gpus, cores = visible_gpus(arguments.get("device")), usable_cores()
        for number in range(workers):
            stop_if_asked()
            with _environment(environment(number, workers, gpus, cores)), _deaf_to_interrupts():
                crew.append(_start(number + 1, arguments))
        yield crew
    finally:
        _end(crew)


def _start(number: int, arguments: Mapping[str, Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(for_workers(arguments), theirs), name=f"llmsearch-worker-{number}")
    process.start()
    theirs.close()
    return _Worker(number, process, ours)


def _end(crew: Sequence[_Worker]) -> None:
    """Ask those that are still at work to end, and do not wait for ever."""
    try:
        for worker in crew:
            worker.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in crew:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if not worker.has_ended():
                logger.warning(
                    "worker %d has not ended within %.0f s and is killed; its finished rows are safe",
                    *(worker.number, SECONDS_TO_END),
                )
    finally:  # a second Ctrl-C means: at once
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join(SECONDS_TO_END)  # nobody can refuse, but it may take a moment
            worker.line.close()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that are started meanwhile: they must be there before torch is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; workers are ended by their parent, once, and not in two ways.

    A process that is started meanwhile inherits the mask, until it ignores the signal itself.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # when the first process starts it, it lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
