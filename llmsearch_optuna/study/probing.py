"""The first rows of the first trials, to see what a study will take: decoded for a forecast, or seen as they come.

The first trials follow from the arguments alone (no result has been seen when they are suggested), so what a forecast
decodes is what the study decodes first. In a study nothing is decoded for it: its own first looks are the probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.ledger import Phase, RowRecord
from llmsearch_optuna.rows import requests_for
from llmsearch_optuna.samplers import visible
from llmsearch_optuna.study.metering import MeteredServer, Span
from llmsearch_optuna.study.preparing import Prepared
from llmsearch_optuna.study.schedule import first_candidate


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
    """Decode the rows of the first look under the configurations that a study begins with.

    Args:
        prepared: The study; with a user's own sampler only the baseline and greedy are known beforehand.
        n_trials: The study's total.
        in_flight: Trials that are begun before the first result is there.
    """
    rows, served = prepared.plan.rows, prepared.served
    opening = enumerate(_opening(prepared, min(n_trials, in_flight)))
    wanted = {_tag(number): params for number, params in opening if params is not None}
    requests = [
        request
        for tag, params in wanted.items()
        for request in requests_for(rows, params, tag, order=rows.order[: rows.looks[0]])
    ]
    records: dict[GenerationParams, list[RowRecord]] = {params: [] for params in wanted.values()}
    server, missing = MeteredServer(served.server, lambda: served.stats), len(requests)
    server.submit(requests)
    try:
        while missing:
            finished = server.poll()
            if not finished:
                raise DecodingError(f"the engine has nothing left to do, but {missing} rows have not come back")
            missing -= len(finished)
            for item in finished:
                if item.completion is not None:
                    records[item.request.params].append(RowRecord.of(item))
    finally:
        for tag in wanted:
            server.cancel(tag)
    return Probe(records, list(server.spans), int(served.stats.get("cache_bytes", 0)))


def _opening(prepared: Prepared, count: int) -> Iterator[GenerationParams | None]:
    """The parameters of the first trials; None where they are refused."""
    plan, begun, known = prepared.plan, list[FrozenTrial](), set[str]()
    for number in range(count):
        candidate, _ = first_candidate(number, plan.baseline, plan.greedy, prepared.space, prepared.served.defaults)
        if candidate is None and prepared.suggester is not None:
            candidate = prepared.suggester.suggest(number, visible(begun, number, count), known)
        if candidate is None:
            return
        yield candidate.generation
        known.add(candidate.fingerprint)
        begun.append(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(candidate.params),
                distributions=dict(candidate.distributions),
            )
        )


def _tag(number: int) -> tuple[Phase, int]:
    return ("search", number)
