"""Whether what decodes gives the same text for the same request: alone, beside others, and in the next session.

Where it does not, scores carry that noise. What was found is stored with the study, and the pruner, the choice of the
winner and the verdict go by it in every session.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmsearch_optuna.backends.protocol import EngineBackend, Repetition
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.decode import decode_all
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer
from llmsearch_optuna.storage.study import OpenedStudy

logger = logging.getLogger("llmsearch_optuna.optimize.draws")

ATTRIBUTE = "draws"
"""Of the study."""

PROBED_ROWS = 4
SCORED_ROWS = 8


@dataclass(frozen=True)
class Draws:
    """How far texts depend on more than the request.

    Attributes:
        greedy_varies: Whether greedy texts differ when the same is asked again, so that one of them is no certainty.
        variance: Of the difference between two scores of one row under one configuration and one seed.
        notes: What was found, in sentences for people.
        texts: Digests of the last session's texts, by configuration.
    """

    greedy_varies: bool = False
    variance: float = 0.0
    notes: tuple[str, ...] = ()
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def varies(self, params: Mapping[str, Any]) -> bool:
        """Whether asking again can give another text."""
        return self.greedy_varies or is_random(params)


def stored_draws(opened: OpenedStudy) -> Draws:
    """What the study knows; nothing varies by itself where it knows nothing."""
    found = opened.study.user_attrs.get(ATTRIBUTE)
    return Draws() if found is None else Draws(**{**found, "notes": tuple(found["notes"])})


def examine_draws(
    backend: EngineBackend, rows: SearchRows, configurations: Mapping[str, GenerationParams], opened: OpenedStudy
) -> None:
    """Ask a few rows again in a new study, or compare with the session before; stores and says what is found.

    Args:
        backend: Is asked.
        rows: The search rows.
        configurations: Name -> how rows are decoded: ``"greedy"``, and ``"sampled"`` where something is.
        opened: The study.
    """
    before = stored_draws(opened)
    is_new = not before.texts
    found = {
        name: repeated
        for name, params in configurations.items()
        if (repeated := backend.repetition(_requests(rows, params.one_sample, PROBED_ROWS), only_alone=not is_new))
        is not None
    }
    if not found:
        return
    notes = [*before.notes, *(_restarted(before, found) if not is_new else _noted(found))]
    greedy = found.get("greedy")
    varies = greedy is not None and (not greedy.is_steady or _differing(before, "greedy", greedy) > 0)
    variance = before.variance
    if is_new and any(not repeated.is_steady for repeated in found.values()):
        variance = _variance(backend, rows, configurations.get("sampled", configurations["greedy"]))
    now = Draws(
        greedy_varies=before.greedy_varies or varies,
        variance=variance,
        notes=tuple(dict.fromkeys(notes)),
        texts={name: repeated.texts for name, repeated in found.items()},
    )
    for note in now.notes:
        if note not in before.notes:
            logger.warning("%s", note)
    opened.study.set_user_attr(ATTRIBUTE, asdict(now))


def _requests(rows: SearchRows, params: GenerationParams, count: int) -> list[Request]:
    return rows.requests(params, ("search", 0), order=rows.order[:count], replicates=[0])


def _noted(found: Mapping[str, Repetition]) -> list[str]:
    names = {"greedy": " (greedy)"}
    return [
        f"{repeated}{names.get(name, '')}: draws depend on what the server computes beside them, and scores carry that "
        "noise"
        for name, repeated in found.items()
        if not repeated.is_steady
    ]


def _restarted(before: Draws, found: Mapping[str, Repetition]) -> list[str]:
    counts = {name: _differing(before, name, repeated) for name, repeated in found.items()}
    return [
        f"{count} of {found[name].rows} {name} texts are others than in an earlier session for the same requests: the "
        "server was changed, or does not repeat itself, and rows of several sessions are compared"
        for name, count in counts.items()
        if count
    ]


def _differing(before: Draws, name: str, repeated: Repetition) -> int:
    return sum(one != other for one, other in zip(before.texts.get(name, ()), repeated.texts, strict=False))


def _variance(backend: EngineBackend, rows: SearchRows, params: GenerationParams) -> float:
    """The mean square of the differences between scores of rows that are asked twice at once; 0 where none is known."""
    if rows.task.metric.per_row is False:
        return 0.0
    asked = _requests(rows, params, SCORED_ROWS)
    try:
        first, second = (_scores(backend, rows, asked, tag, params.samples) for tag in ("first", "second"))
    except (MetricError, DecodingError) as error:
        logger.info("how much scores vary is not known: %s", error)
        return 0.0
    return sum((one - other) ** 2 for one, other in zip(first, second, strict=True)) / len(first)


def _scores(backend: EngineBackend, rows: SearchRows, asked: Sequence[Request], tag: str, samples: int) -> list[float]:
    gatherer, found = SampleGatherer(samples), dict[int, RowRecord]()

    def take(finished: Sequence[Finished]) -> None:
        for item in finished:
            if item.completion is None:
                raise item.error or DecodingError("no completion")
        found.update({record.row: record for record in gatherer.add(map(RowRecord.of, finished))})

    decode_all(backend, [_tagged(request, tag) for request in asked], take)
    order = dict.fromkeys(request.row for request in asked)
    return [record.score or 0.0 for record in rows.score([found[row] for row in order])]


def _tagged(request: Request, tag: str) -> Request:
    return replace(request, tag=("draws", tag))
