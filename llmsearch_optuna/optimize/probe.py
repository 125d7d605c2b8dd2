"""Decodes a few rows under the configurations that a study begins with, and measures what they take."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.engine.request import Finished
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.optimize.decode import decode_all
from llmsearch_optuna.optimize.plan import Plan
from llmsearch_optuna.optimize.prepare import Prepared
from llmsearch_optuna.optimize.samplers import visible
from llmsearch_optuna.optimize.throughput import Span, ThroughputMeter
from llmsearch_optuna.optimize.trial_queue import first_candidate
from llmsearch_optuna.storage.records import Phase
from llmsearch_optuna.storage.row_record import RowRecord, gathered


@dataclass(frozen=True)
class Probe:
    """What a few rows under the study's first configurations gave and took.

    Attributes:
        records: What came of them, by configuration; rows that failed are left out.
        spans: The work, piece by piece.
        cache_bytes: What stored scores, keys and values take at its end.
    """

    records: Mapping[GenerationParams, Sequence[RowRecord]]
    spans: Sequence[Span]
    cache_bytes: int = 0


def probe(prepared: Prepared, *, n_trials: int, in_flight: int) -> Probe:
    """Decode the rows of the first pruning step under the configurations that a study begins with.

    Args:
        prepared: The study; with a user's own sampler only the baseline and greedy are known beforehand.
        n_trials: The study's total.
        in_flight: Trials that are begun before the first result is there.
    """
    plan, served = prepared.plan, prepared.served
    opening = enumerate(_opening(prepared, min(n_trials, in_flight)))
    wanted = {number: params for number, params in opening if params is not None}
    requests = [
        request
        for number, params in wanted.items()
        for rows in [plan.rows_of(number)]
        for request in rows.requests(params, _tag(number), order=rows.order[: rows.steps[0]])
    ]
    draws: dict[Hashable, list[RowRecord]] = {_tag(number): [] for number in wanted}
    server = ThroughputMeter(served.backend, lambda: served.stats)

    def take(finished: Sequence[Finished]) -> None:
        for item in finished:
            draws[item.request.tag].append(RowRecord.of(item))

    decode_all(server, requests, take)
    records = {
        params: [r for r in gathered(draws[_tag(number)]) if r.error is None] for number, params in wanted.items()
    }
    return Probe(records, list(server.spans), int(served.stats.get("cache_bytes", 0)))


def _opening(prepared: Prepared, count: int) -> Iterator[GenerationParams | None]:
    """The parameters of the first trials; None where they are refused."""
    plan, begun, known = prepared.plan, list[FrozenTrial](), list[str]()
    for number in range(count):
        shown = [place for place in range(number) if _is_shown(plan, place, number)]
        candidate, _ = first_candidate(
            number,
            plan.baseline,
            plan.greedy,
            prepared.space,
            prepared.served.defaults,
            try_first=plan.try_first,
        )
        if candidate is None and prepared.suggester is not None:
            seen = visible(begun, number, count)
            candidate = prepared.suggester.suggest(number, [seen[n] for n in shown], {known[n] for n in shown})
        if candidate is None:
            return
        yield candidate.generation
        known.append(candidate.fingerprint)
        begun.append(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(candidate.params),
                distributions=dict(candidate.distributions),
            )
        )


def _is_shown(plan: Plan, earlier: int, number: int) -> bool:
    """Whether a trial may know of an earlier one: not of one that is run on the other half of the rows."""
    half = None if plan.halves is None else plan.halves.of_trial(number)
    return plan.halves is None or half is None or plan.halves.shows(earlier, half)


def _tag(number: int) -> tuple[Phase, int]:
    return ("search", number)
