"""Keeps as many requests in flight as the server can make use of, and tries those again that failed for now.

Lives in one event loop and is touched from there only. What a request says and what an answer means is not known here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llmsearch_optuna.backends.server.backoff import Backoff
from llmsearch_optuna.backends.server.concurrency import ConcurrencyLimit
from llmsearch_optuna.backends.server.failures import Failure, failure_of


@dataclass
class Job:
    """Something to ask.

    Attributes:
        ticket: Names it.
        ask: Asks once; raises what `failure_of` explains.
        backoff: When to ask again after a failure.
        task: What runs now: asking, or waiting to ask again.
    """

    ticket: int
    ask: Callable[[], Awaitable[Any]]
    backoff: Backoff
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Dispatcher:
    """Asks jobs, oldest first.

    Args:
        limit: How many may be in flight.
        answered: Is told a job's ticket and its result.
        failed: Is told a job's ticket and why it was given up.
        work_of: How much a result was, in units that add up.
        retried: Is told a job's ticket whenever it is going to be asked again.
    """

    def __init__(
        self,
        limit: ConcurrencyLimit,
        *,
        answered: Callable[[int, Any], None],
        failed: Callable[[int, Failure], None],
        work_of: Callable[[Any], float],
        retried: Callable[[int, Failure], None],
    ) -> None:
        self._limit = limit
        self._answered = answered
        self._failed = failed
        self._work_of = work_of
        self._retried = retried
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[Job] = deque()
        self._in_flight = 0

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._jobs[job.ticket] = job
        self._waiting.append(job)
        self._start_jobs()

    def cancel(self, ticket: int) -> None:
        """Forget a job; what is in flight for it is broken off."""
        job = self._jobs.pop(ticket, None)
        if job is not None and job.task is not None:
            job.task.cancel()

    @property
    def in_flight(self) -> int:
        """How many requests the server is working on."""
        return self._in_flight

    def _start_jobs(self) -> None:
        while self._waiting and self._in_flight < self._limit.limit:
            job = self._waiting.popleft()
            if job.ticket in self._jobs:
                self._in_flight += 1
                job.task = asyncio.get_running_loop().create_task(self._ask(job))
                # Not in the coroutine: one that is cancelled before its first step never runs.
                job.task.add_done_callback(self._left_flight)

    async def _ask(self, job: Job) -> None:
        try:
            result = await job.ask()
        except Exception as error:
            self._take_failure(job, failure_of(error))
        else:
            self._limit.succeeded(self._work_of(result), is_saturated=bool(self._waiting))
            if self._jobs.pop(job.ticket, None) is not None:
                self._answered(job.ticket, result)

    def _left_flight(self, _: asyncio.Task[None]) -> None:
        self._in_flight -= 1
        self._start_jobs()

    def _take_failure(self, job: Job, failure: Failure) -> None:
        if failure.kind == "not now":
            self._limit.failed(is_overload=failure.is_overload)
            delay = job.backoff.next_delay(failure.retry_after)
            if delay is not None:
                self._retried(job.ticket, failure)
                job.task = asyncio.get_running_loop().create_task(self._ask_again(job, delay))
                return
        if self._jobs.pop(job.ticket, None) is not None:
            self._failed(job.ticket, failure)

    async def _ask_again(self, job: Job, delay: float) -> None:
        await asyncio.sleep(delay)
        if job.ticket in self._jobs:
            self._waiting.appendleft(job)
            self._start_jobs()
