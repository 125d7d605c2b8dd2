"""How workers are watched, wherever they are: the study is told on, and whoever ends early is named.

Where workers are placed and how one hears from them is not known here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from llmsearch_optuna.declaration import completed, part
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.options import SearchOptions
from llmsearch_optuna.progress import Callback, StudyEnded
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage.study import prepare_database
from llmsearch_optuna.workers.study_watcher import StudyWatcher
from llmsearch_optuna.workers.worker import Logged

logger = logging.getLogger("llmsearch_optuna.workers")

LOOK_EVERY_SECONDS = 0.5
SECONDS_TO_END = 10.0
"""What workers that are told to end have for it."""


class Worker(Protocol):
    """Someone at work, seen from the parent.

    Attributes:
        number: From 1, for people.
        problem: Why it could not go on, in its own words.
    """

    number: int
    problem: str | None

    def has_ended(self) -> bool:
        """Whether it is no longer at work."""

    def how_it_ended(self) -> str | None:
        """Why it is no longer at work; None where it has done its part."""


W = TypeVar("W", bound=Worker)


class Crew(Protocol[W]):
    """The workers of one study, and how one hears from them."""

    @property
    def workers(self) -> Sequence[W]:
        """All of them, those that have ended too."""

    def wait(self, at_work: Sequence[W]) -> None:
        """Return when one of these has ended, or after `LOOK_EVERY_SECONDS`."""

    def listen(self, at_work: Sequence[W]) -> None:
        """Pass on what these have said."""


def search_watched(
    arguments: Mapping[str, Any],
    workers: int,
    observer: Callback,
    place: Callable[[StudyWatcher], contextlib.AbstractContextManager[Crew[Any]]],
) -> SearchResult:
    """Run a study by workers, and follow it to its end.

    Args:
        arguments: Of `search`.
        workers: How many workers there will be.
        observer: Is told what happens in the study.
        place: Starts the workers, and ends those that are left when the block ends.

    Raises:
        StudyError: Every worker has ended before the study was complete; says why.
    """
    _warn_of_idle(completed(SearchOptions, part(SearchOptions, arguments))["trials_in_flight"], workers)
    prepare_database(arguments.get("storage"), arguments["study_name"])
    watcher = StudyWatcher.of(arguments, observer)
    with contextlib.closing(watcher), place(watcher) as crew:
        watch(crew, watcher)
    result = load_result(arguments.get("storage"), arguments["study_name"])
    observer.on(StudyEnded(result_summary=result.summary))
    return result


def watch(crew: Crew[W], watcher: StudyWatcher) -> None:
    """Follow the study until no worker is left.

    Raises:
        StudyError: Every worker has ended before the study was complete; says why.
    """
    at_work, unsaid = list(crew.workers), list[tuple[W, int]]()
    while at_work:
        crew.wait(at_work)
        ended = [worker for worker in at_work if worker.has_ended()]
        crew.listen(at_work)  # also to those that have just ended
        at_work = [worker for worker in at_work if worker not in ended]
        unsaid += [(worker, watcher.trials_ended) for worker in ended if worker.how_it_ended() is not None]
        watcher.poll()
        # What stops one worker often stops all: it is not worth a warning before another one has got any further.
        for worker, before in [item for item in unsaid if at_work and watcher.trials_ended > item[1]]:
            logger.warning("worker %d has ended (%s); the others go on", worker.number, worker.how_it_ended())
            unsaid.remove((worker, before))
    if all(worker.how_it_ended() is not None for worker in crew.workers):
        raise StudyError(_why_nobody_is_left(crew.workers))
    for worker, _ in unsaid:
        logger.warning("worker %d had ended early (%s); the others did its part", worker.number, worker.how_it_ended())


def pass_on(said: Logged, told: set[Logged]) -> None:
    """Log what a worker has logged; what another worker has said already is dropped."""
    if said not in told:
        told.add(said)
        logging.getLogger(said.logger).log(said.level, "%s", said.text)


def _warn_of_idle(in_flight: int, workers: int) -> None:
    """Say that some of the workers would have nothing to do."""
    if workers > in_flight:
        logger.warning(
            "trials_in_flight is %d, so only %d of %d workers will have something to do; a new study may be given more",
            in_flight,
            in_flight,
            workers,
        )


def _why_nobody_is_left(workers: Sequence[Worker]) -> str:
    told = dict.fromkeys(worker.problem for worker in workers if worker.problem is not None)
    if told:
        return "\n".join(told)
    reasons = "; ".join(f"worker {worker.number}: {worker.how_it_ended()}" for worker in workers)
    return f"no worker is left ({reasons}). All finished rows are safe; run the same command again to go on."
