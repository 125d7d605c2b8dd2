"""The loop of a study: start trials, decode their requests, give each trial its completions.

Waiting for other workers happens here and nowhere else. Which trial does what is decided in `trial_queue` and `trial`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.errors import DecodingError, StudyError
from llmsearch_optuna.optimize.request_queue import RequestQueue
from llmsearch_optuna.optimize.signals import stop_if_asked, stoppable
from llmsearch_optuna.optimize.trial import TrialJob, TrialRun
from llmsearch_optuna.optimize.trial_queue import TrialQueue
from llmsearch_optuna.storage.leases import Claim, ClaimLostError
from llmsearch_optuna.storage.records import Fence, Phase, StudyRecords
from llmsearch_optuna.storage.row_record import RowRecord, gathered
from llmsearch_optuna.storage.trials import best_complete

logger = logging.getLogger("llmsearch_optuna.optimize.loop")

MOST_EQUAL_FAILURES = 8
MOST_EQUAL_FAILURES_AT_FIRST = 4
"""As long as no trial of the study is complete."""

POLL_SECONDS = 0.5
WAIT_SECONDS = 0.2


def run_trials(
    trial_queue: TrialQueue,
    request_queue: RequestQueue,
    make_run: Callable[[TrialJob, Claim], TrialRun],
    callback: progress.Callback,
    *,
    deadline: float | None = None,
) -> None:
    """Work until the study has all its trials and none is under way, here or elsewhere.

    Args:
        trial_queue: Says which trial is next.
        request_queue: Decodes their rows.
        make_run: Makes the run of a trial.
        callback: Gets an event for every trial that ends here.
        deadline: Reading of ``time.monotonic`` after which no new trial is begun.

    Raises:
        EngineUnavailableError: The engine does not answer for now; its trials stay under way.
        StudyError: Trials fail one after another for the same reason.
    """
    runs: dict[Hashable, TrialRun] = {}
    failures = EqualFailures()
    polled = -POLL_SECONDS
    try:
        while True:
            if len(runs) == 0 or time.monotonic() - polled >= POLL_SECONDS:
                _start_trials(trial_queue, request_queue, make_run, runs, callback, deadline)
                polled = time.monotonic()
            if not runs:
                if _is_done(trial_queue, deadline):
                    return
                with stoppable():
                    time.sleep(WAIT_SECONDS)
                continue
            ended = _serve(request_queue, runs)
            for run in ended:
                _close(run, request_queue, runs, trial_queue, callback)
            failures.check(ended, trial_queue)
            if ended:
                polled = -POLL_SECONDS
    finally:
        for tag in runs:
            request_queue.cancel(tag)


@dataclass
class EqualFailures:
    """Ends a study whose trials fail one after another for the same reason: none of the next ones would do better.

    Trials that were refused for their parameters, or had no room in the memory, do not count. Only those that ended
    here and now do: a study that was ended so goes on when it is run again.
    """

    reason: str = ""
    numbers: list[int] = field(default_factory=list)

    def check(self, ended: Sequence[TrialRun], trial_queue: TrialQueue) -> None:
        """Take in trials that have ended.

        Raises:
            StudyError: Too many have failed; says for which reason, and how to go on.
        """
        for run in ended:
            if run.end is None:
                continue
            reason = _reason_to_mend(run)
            if reason is None or reason != self.reason:
                self.reason, self.numbers = reason or "", []
            if reason is not None:
                self.numbers.append(run.job.number)
        has_complete = any(t.state is TrialState.COMPLETE for t in trial_queue.trials()) if self.numbers else False
        if len(self.numbers) >= (MOST_EQUAL_FAILURES if has_complete else MOST_EQUAL_FAILURES_AT_FIRST):
            raise StudyError(
                f"trials {', '.join(map(str, self.numbers))} failed one after another for the same reason, so the "
                f"study ends here: {self.reason}\nMend it and give the same command again; it goes on with new trials."
            )


def _reason_to_mend(run: TrialRun) -> str | None:
    """Why a trial failed, where that is not its parameters; without the prediction, which differs."""
    assert run.end is not None
    reason = run.end.reason if run.end.state == "failed" and run.job.refusal is None else None
    if reason is None or "memory" in reason:
        return None
    return reason.split(" (its prediction: ")[0]


def gather(
    server: RequestHandler,
    stored: StudyRecords,
    phase: Phase,
    wanted: Mapping[int, Sequence[Request]],
    fence: Fence,
) -> dict[int, list[RowRecord]]:
    """Decode what of these requests is not stored yet, and return the records of all, by trial number.

    Raises:
        ClaimLostError: Another worker has taken this over.
        EngineUnavailableError: The engine does not answer for now; what it has not decoded is not in the stored.
    """
    draws: dict[int, dict[tuple[int, int], RowRecord]] = {}
    missing = 0
    for number, requests in wanted.items():
        keys = {(r.row, r.replicate) for r in requests}
        known = {(r.row, r.draw): r for r in stored.draws(phase, number)}
        draws[number] = {key: record for key, record in known.items() if key in keys}
        left = [r for r in requests if (r.row, r.replicate) not in known]
        missing += len(left)
        server.submit(left)
    try:
        while missing:
            with stoppable():
                finished = server.poll()
            if not finished:
                raise DecodingError(f"the engine has nothing left to do, but {missing} rows have not come back")
            for number, group in _by_number(finished).items():
                new = [RowRecord.of(f) for f in group]
                stored.record(phase, number, new, fence=fence)
                draws[number].update({(r.row, r.draw): r for r in new})
                missing -= len(new)
    finally:
        for number in wanted:
            server.cancel((phase, number))
    return {number: gathered(found[key] for key in sorted(found)) for number, found in draws.items()}


def _start_trials(
    trial_queue: TrialQueue,
    request_queue: RequestQueue,
    make_run: Callable[[TrialJob, Claim], TrialRun],
    runs: dict[Hashable, TrialRun],
    callback: progress.Callback,
    deadline: float | None,
) -> None:
    while len(runs) < trial_queue.room():
        stop_if_asked()  # a trial whose rows are all known never comes to the engine
        work = trial_queue.next(may_create=not _is_late(deadline))
        if work is None:
            return
        run = make_run(*work)
        try:
            requests = run.start()
        except ClaimLostError:
            run.lose()
            continue
        if run.end is not None:
            _tell_end(run, trial_queue, callback)
            continue
        runs[run.tag] = run
        request_queue.add(_by_step(run, requests))


def _by_step(run: TrialRun, requests: Iterable[Request]) -> Iterator[tuple[int, Request]]:
    """Each request with the number of its step, made when it is asked for."""
    return ((run.step_of(request), request) for request in requests)


def _serve(request_queue: RequestQueue, runs: dict[Hashable, TrialRun]) -> list[TrialRun]:
    """Give each run what has been decoded for it; returns the runs that have ended, or been lost, by it."""
    with stoppable():
        finished = request_queue.poll()
    if not finished and all(run.is_waiting for run in runs.values()):
        with stoppable():
            time.sleep(WAIT_SECONDS)  # for another worker's rows of the baseline
    elif not finished:
        waiting = ", ".join(str(run.job.number) for run in runs.values())
        raise DecodingError(f"the engine has nothing left to do, but rows of trial {waiting} have not come back")
    ended = []
    groups: dict[Hashable, list[Finished]] = defaultdict(list)
    for item in finished:
        groups[item.request.tag].append(item)
    # Trial 0 is fed first where its rows are among them: it says which rows of the others count.
    for run in sorted(runs.values(), key=lambda run: run.job.number):
        try:
            if run.tag in groups:
                run.feed(groups[run.tag])
            elif run.end is None:
                run.advance()
        except ClaimLostError:
            logger.info("trial %d was taken over by another worker; dropped here", run.job.number)
            run.lose()
            ended.append(run)
        else:
            if run.end is not None:
                ended.append(run)
    return ended


def _close(
    run: TrialRun,
    request_queue: RequestQueue,
    runs: dict[Hashable, TrialRun],
    trial_queue: TrialQueue,
    callback: progress.Callback,
) -> None:
    request_queue.cancel(run.tag)
    del runs[run.tag]
    if run.end is not None:
        _tell_end(run, trial_queue, callback)


def _tell_end(run: TrialRun, trial_queue: TrialQueue, callback: progress.Callback) -> None:
    assert run.end is not None
    best = best_complete(trial_queue.trials(), trial_queue.rows.direction)
    callback.on(
        progress.TrialEnded(
            number=run.job.number,
            state=run.end.state,
            value=run.end.value,
            reason=run.end.reason,
            seconds=run.seconds,
            is_best=best is not None and best.number == run.job.number,
        )
    )


def _is_done(trial_queue: TrialQueue, deadline: float | None) -> bool:
    return (trial_queue.is_over() or _is_late(deadline)) and trial_queue.all_ended()


def _is_late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _by_number(finished: Sequence[Finished]) -> dict[int, list[Finished]]:
    groups: dict[int, list[Finished]] = defaultdict(list)
    for item in finished:
        tag = item.request.tag
        assert isinstance(tag, tuple)
        groups[tag[1]].append(item)
    return groups
