"""How workers are watched, wherever they are: the study is told on, and whoever ends early is named.

Where workers are placed and how one hears from them is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.workers.following import Follower
from llmsearch_optuna.workers.working import Logged

logger = logging.getLogger("llmsearch_optuna.workers")

LOOK_EVERY_SECONDS = 0.5


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


def watch(
    crew: Sequence[W],
    follower: Follower,
    wait: Callable[[Sequence[W]], None],
    listen: Callable[[Sequence[W]], None],
) -> None:
    """Follow the study until no worker is left.

    Args:
        crew: The workers.
        follower: Of their study.
        wait: Returns when one of these workers has ended, or after `LOOK_EVERY_SECONDS`.
        listen: Passes on what these workers have said.

    Raises:
        StudyError: Every worker has ended before the study was complete; says why.
    """
    at_work, unsaid = list(crew), list[tuple[W, int]]()
    while at_work:
        wait(at_work)
        ended = [worker for worker in at_work if worker.has_ended()]
        listen(at_work)  # also to those that have just ended
        at_work = [worker for worker in at_work if worker not in ended]
        unsaid += [(worker, follower.trials_ended) for worker in ended if worker.how_it_ended() is not None]
        follower.look()
        # What stops one worker often stops all: it is not worth a warning before another one has got any further.
        for worker, before in [item for item in unsaid if at_work and follower.trials_ended > item[1]]:
            logger.warning("worker %d has ended (%s); the others go on", worker.number, worker.how_it_ended())
            unsaid.remove((worker, before))
    if all(worker.how_it_ended() is not None for worker in crew):
        raise StudyError(_why_nobody_is_left(crew))
    for worker, _ in unsaid:
        logger.warning("worker %d had ended early (%s); the others did its part", worker.number, worker.how_it_ended())


def pass_on(said: Logged, told: set[Logged]) -> None:
    """Log what a worker has logged; what another worker has said already is dropped."""
    if said not in told:
        told.add(said)
        logging.getLogger(said.logger).log(said.level, "%s", said.text)


def _why_nobody_is_left(crew: Sequence[Worker]) -> str:
    told = dict.fromkeys(worker.problem for worker in crew if worker.problem is not None)
    if told:
        return "\n".join(told)
    reasons = "; ".join(f"worker {worker.number}: {worker.how_it_ended()}" for worker in crew)
    return f"no worker is left ({reasons}). All finished rows are safe; run the same command again to go on."
