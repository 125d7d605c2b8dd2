"""Workers as tasks of a Ray cluster: placed on its nodes, watched, started again when a node dies, ended together.

Ray only says where a worker runs. Who does what, and who takes over from whom, stands in the study's database, as with
processes of one machine; so that must be a server that all nodes reach. Nothing is shipped: every node has the library
installed, and the files of the study under the same paths. No cluster is started here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsearch_optuna import __version__
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.signals import interruptible, stoppable
from llmsearch_optuna.options import for_workers
from llmsearch_optuna.progress import Callback
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.storage.address import StorageAddress
from llmsearch_optuna.storage.errors import first_line
from llmsearch_optuna.workers.ray_worker import INTERRUPTED, Began, Errand, Mailbox, work_on_node
from llmsearch_optuna.workers.study_watcher import StudyWatcher
from llmsearch_optuna.workers.supervisor import LOOK_EVERY_SECONDS, SECONDS_TO_END, pass_on, search_watched
from llmsearch_optuna.workers.worker import Logged

logger = logging.getLogger("llmsearch_optuna.workers")

SECONDS_TO_CONNECT = 10.0
MOST_LOSSES = 3
"""A worker that was lost so many times while no trial ended is not started again: something else is wrong."""


def search_on_ray(arguments: Mapping[str, Any], workers: int, address: str, observer: Callback) -> SearchResult:
    """Run a study as tasks of a Ray cluster; it comes out as from one process.

    Args:
        arguments: Of `search`; they must be picklable, and name the study.
        workers: How many tasks; each has one GPU where the cluster has any.
        address: Of a cluster that runs: ``"auto"``, ``host:port`` or ``ray://host:port``.
        observer: Is told what happens in the study.

    Raises:
        InputError: The study, the address or this installation does not allow it; says what to do.
        StudyError: No cluster answers, or every worker has ended before the study was complete; says why.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    check_ray(arguments.get("storage"), arguments["study_name"], address)
    return search_watched(arguments, workers, observer, functools.partial(_placed, arguments, workers, address))


def check_ray(storage: str | None, study_name: str, address: str) -> None:
    """Raise InputError where a study cannot be run on Ray, before anything is loaded or started."""
    path = StorageAddress.of(storage, study_name).path
    if path is not None:
        raise InputError(
            f"--ray {address}: the study is in the file {path}, and SQLite cannot be shared by machines; "
            "give a server that all nodes reach: --storage postgresql+psycopg://user@host/database"
        )
    # With RAY_ADDRESS=local, Ray reads auto as: start one.
    if "local" in (address, os.environ.get("RAY_ADDRESS") if address == "auto" else None):
        raise InputError(f"--ray {address}: no cluster is started here; on one machine --workers alone is enough")
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            f"--ray {address} needs an extra that is not installed; get it with: pip install 'llmsearch-optuna[ray]'"
        )


@dataclass(frozen=True)
class Share:
    """What a worker asks a node for.

    Attributes:
        num_gpus: GPUs.
        num_cpus: Processor cores; Ray gives a task as many threads.
    """

    num_gpus: int
    num_cpus: int


def share(device: str | None, nodes: Sequence[Mapping[str, float]], workers: int) -> Share:
    """One GPU where the cluster has any and the study wants one, otherwise a fair part of the processors.

    Args:
        device: Where the study wants its model.
        nodes: What the nodes have, as Ray names it.
        workers: How many workers there are.
    """
    if any(node.get("GPU") for node in nodes) and (device in (None, "auto") or str(device).startswith("cuda")):
        return Share(num_gpus=1, num_cpus=1)
    cores = [math.floor(node["CPU"]) for node in nodes if node.get("CPU", 0.0) >= 1.0]
    # Never more than the smallest node has: a worker must find another place when its node dies.
    return Share(num_gpus=0, num_cpus=max(1, min([sum(cores) // workers, *cores], default=1)))


def room(wanted: Share, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers fit on the nodes."""
    asked = {name: number for name, number in (("GPU", wanted.num_gpus), ("CPU", wanted.num_cpus)) if number}
    return sum(min(math.floor(node.get(name, 0.0) / number) for name, number in asked.items()) for node in nodes)


@dataclass(eq=False)
class _Worker:
    """A task, started again when it is lost.

    Attributes:
        number: From 1, for people.
        start: Hands the task to Ray.
        trials_ended: Says how far the study is.
        task: What Ray promised.
        node: Where it runs; None while it waits for a place.
        problem: Why it could not go on, in its own words.
    """

    number: int
    start: Callable[[], Any]
    trials_ended: Callable[[], int]
    task: Any = None
    node: str | None = None
    problem: str | None = None
    _lost: str | None = None
    _losses: int = 0
    _trials_before: int = 0
    _dismissed: bool = False
    _ended: bool = False

    def begin(self) -> None:
        """Hand the task to Ray."""
        self._trials_before = self.trials_ended()
        self._lost, self.node, self.task = None, None, self.start()

    def has_ended(self) -> bool:
        """Whether it is no longer at work; one that was lost is started again here."""
        import ray

        if not self._ended and ray.wait([self.task], timeout=0)[0]:
            self._meet_the_end()
            self._ended = self._lost is None or not self._may_begin_again()
            if not self._ended:
                logger.warning("worker %d has ended (%s); it is started again", self.number, self._lost)
                self.begin()
        return self._ended

    def how_it_ended(self) -> str | None:
        """Why it is no longer at work; None where it has done its part, or has none any more."""
        return self.problem or self._lost

    def end(self, *, at_once: bool = False) -> None:
        """Ask it to end with its rows saved, or end it; it is not started again."""
        import ray

        self._dismissed = True
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self.task, force=at_once, recursive=False)

    def _meet_the_end(self) -> None:
        import ray

        node = "its node" if self.node is None else f"its node {self.node}"
        problem, lost = None, None
        try:
            problem = ray.get(self.task)
        except ray.exceptions.RayTaskError as error:
            problem = _why_it_did_not_begin(error)
        except ray.exceptions.RayError as error:
            lost = _what_was_lost(error, node)
        if problem == INTERRUPTED:
            problem, lost = None, f"it was told to end on {node}"
        if not self._dismissed:
            self.problem, self._lost = problem, lost

    def _may_begin_again(self) -> bool:
        self._losses = 1 if self.trials_ended() > self._trials_before else self._losses + 1
        return self._losses < MOST_LOSSES


@dataclass(frozen=True)
class _Crew:
    """The workers of one study, and the mailbox that they write to."""

    workers: Sequence[_Worker]
    mailbox: Any
    told: set[Logged] = field(default_factory=set)

    def wait(self, at_work: Sequence[_Worker]) -> None:
        """Return when a worker has ended, or after `LOOK_EVERY_SECONDS`."""
        import ray

        with stoppable():
            ray.wait([worker.task for worker in at_work], timeout=LOOK_EVERY_SECONDS)

    def listen(self, at_work: Sequence[_Worker]) -> None:
        """Pass on what was said since the last time; who has not begun when a worker is done need not begin."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # its node is gone; what workers log is not worth a study
            for post in ray.get(self.mailbox.take.remote()):
                if isinstance(post.said, Began):
                    self.workers[post.worker - 1].node = post.said.node
                else:
                    pass_on(post.said, self.told)
        at_work = [worker for worker in at_work if not worker.has_ended()]
        if any(worker.has_ended() and worker.how_it_ended() is None for worker in set(self.workers) - set(at_work)):
            for worker in at_work:
                if worker.node is None:
                    worker.end()


@contextlib.contextmanager
def _placed(arguments: Mapping[str, Any], workers: int, address: str, watcher: StudyWatcher) -> Iterator[_Crew]:
    with (
        _connected(address),
        interruptible(watcher.resume_hint),
        _started(arguments, workers, watcher) as crew,
    ):
        yield crew


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to a cluster that runs."""
    import ray

    # Ray prints what happens to nodes, with pages of their logs, to standard output, which belongs to the result.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            _check_that_somebody_listens(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise StudyError(
                f"--ray {address}: no cluster can be used there ({first_line(error)}). Start one with `ray start "
                "--head`, and give its address: auto or host:port on a machine of the cluster, ray://host:10001 from "
                "elsewhere"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_that_somebody_listens(address: str) -> None:
    """Raise OSError where nobody does: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("it has no host and port")
    with socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT):
        pass


@contextlib.contextmanager
def _started(arguments: Mapping[str, Any], workers: int, watcher: StudyWatcher) -> Iterator[_Crew]:
    """The workers, handed to Ray; whatever happens, none is left behind."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = share(arguments.get("device"), nodes, workers)
    if (places := room(wanted, nodes)) < workers:
        logger.warning(
            "the cluster has room for %d of %d workers (%s each); the others begin when there is more",
            places,
            workers,
            f"{wanted.num_gpus} GPU" if wanted.num_gpus else f"{wanted.num_cpus} CPU",
        )
    mailbox = _mailbox()
    # Lost tasks are started again here and not by Ray, so that the user is told, and not for ever.
    task = ray.remote(work_on_node).options(
        num_gpus=wanted.num_gpus, num_cpus=wanted.num_cpus, max_retries=0, scheduling_strategy="SPREAD"
    )
    crew = _Crew(
        [
            _Worker(number, functools.partial(task.remote, errand, mailbox), lambda: watcher.trials_ended)
            for number in range(1, workers + 1)
            for errand in [Errand(number, for_workers(arguments), str(Path.cwd()), __version__)]
        ],
        mailbox,
    )
    try:
        for worker in crew.workers:
            worker.begin()
        yield crew
    finally:
        _end(crew.workers)


def _mailbox() -> Any:
    """An actor beside this process, if it can be: it is to live as long as somebody reads it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _end(crew: Sequence[_Worker]) -> None:
    """Ask those that are still at work to end, and do not wait for ever."""
    import ray

    tasks = [worker.task for worker in crew if worker.task is not None]
    if not tasks or not ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]:
        return
    try:
        for worker in crew:
            worker.end()
        ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_END)
    finally:  # a second Ctrl-C means: at once
        for worker in crew:
            worker.end(at_once=True)


def _why_it_did_not_begin(error: Any) -> str:
    """What to do about an error that came before the worker's own code."""
    if "llmsearch_optuna" in str(error) and "ModuleNotFoundError" in str(error):
        return (
            "a node of the cluster has no llmsearch-optuna; install it there, in the environment that Ray runs in, as "
            f"it is here: pip install 'llmsearch-optuna[ray,postgres]=={__version__}'"
        )
    return f"a worker could not begin: {first_line(error if error.cause is None else error.cause)}"


def _what_was_lost(error: Exception, node: str) -> str:
    import ray

    if isinstance(error, ray.exceptions.NodeDiedError):
        return f"{node} is dead or out of reach"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"Ray ended it because {node} ran short of memory"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its process on {node} is gone"
    return f"{first_line(error)} on {node}"
