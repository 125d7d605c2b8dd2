"""The completion and the score of one row, as it is stored: one sample, or the samples of a row gathered.

No database is opened here; `records` reads and writes these.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmsearch_optuna.engine.request import Completion, Finished, draw_of, replicate_and_sample


@dataclass(frozen=True, slots=True)
class RowRecord:
    """The completion of one row under one configuration and, once its pruning step is done, its score; or an error.

    Where a row has several samples, this is the first of them, with the score of all of them together and the error of
    any; `gathered` makes it of records of single samples.
    """

    row: int
    replicate: int
    text: str | None
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    score: float | None = None
    error: str | None = None
    reasoning: str | None = None
    reasoning_tokens: int = 0
    logprob: float | None = None
    """Of all tokens together; see `Completion.cumulative_logprob`."""
    parts: Mapping[str, float] | None = field(default=None, compare=False)
    """Scores of the parts of a weighted metric, by name; only in the process that scored them."""
    sample: int = 0
    further: tuple[RowRecord, ...] = ()
    """The other samples of the row, in their order."""

    @classmethod
    def of(cls, finished: Finished) -> RowRecord:
        """The record of a finished request, of one sample; not scored yet."""
        request, completion = finished.request, finished.completion
        replicate, sample = replicate_and_sample(request.replicate)
        if completion is None:
            reason = str(finished.error) if finished.error is not None else "no completion and no reason"
            return cls(request.row, replicate, None, error=storable(reason), sample=sample)
        return cls(
            request.row,
            replicate,
            storable(completion.text),
            tuple(completion.token_ids),
            completion.finish_reason,
            completion.prompt_tokens,
            reasoning=None if completion.reasoning is None else storable(completion.reasoning),
            reasoning_tokens=completion.reasoning_tokens,
            logprob=completion.cumulative_logprob,
            sample=sample,
        )

    @property
    def draw(self) -> int:
        """The number under which it was asked for and is stored."""
        return draw_of(self.replicate, self.sample)

    @property
    def samples(self) -> tuple[RowRecord, ...]:
        """All samples of the row, this one first."""
        return (self, *self.further)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """Those of all samples."""
        return tuple(sample.completion for sample in self.samples)

    @property
    def tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(len(sample.token_ids) for sample in self.samples)

    @property
    def asked_tokens(self) -> int:
        """Prompt tokens of all samples: each is a request of its own."""
        return sum(sample.prompt_tokens for sample in self.samples)

    def scored(self, score: float, parts: Mapping[str, float] | None = None) -> RowRecord:
        """The same record with its score, and with those of a weighted metric's parts."""
        return replace(self, score=score, parts=parts)

    @property
    def completion(self) -> Completion:
        """The completion as the engine gave it."""
        return Completion(
            self.text or "",
            self.token_ids,
            self.finish_reason or "eos",  # type: ignore[arg-type]
            self.prompt_tokens,
            self.reasoning,
            self.reasoning_tokens,
            self.logprob,
        )


def gathered(draws: Iterable[RowRecord]) -> list[RowRecord]:
    """Return one record for each row and replicate, made of its samples; without those whose first is not there."""
    draws = list(draws)
    if not any(draw.sample for draw in draws):
        return draws
    found: dict[tuple[int, int], list[RowRecord]] = defaultdict(list)
    for draw in draws:
        found[draw.row, draw.replicate].append(draw)
    return [_of_samples(samples) for samples in found.values() if any(s.sample == 0 for s in samples)]


class SampleGatherer:
    """Gathers the samples of rows as they are decoded.

    Args:
        samples: How many each row has.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._found: dict[tuple[int, int], dict[int, RowRecord]] = defaultdict(dict)

    def add(self, draws: Iterable[RowRecord]) -> list[RowRecord]:
        """Take single samples, and return the rows that have all of theirs by that."""
        whole = []
        for draw in draws:
            if draw.sample >= self._samples:
                continue
            found = self._found[draw.row, draw.replicate]
            found[draw.sample] = draw
            if len(found) == self._samples:
                whole.append(_of_samples(list(found.values())))
        return whole

    def has(self, row: int, draw: int) -> bool:
        """Whether a sample is there."""
        replicate, sample = replicate_and_sample(draw)
        return sample in self._found.get((row, replicate), ())


def by_row(records: Sequence[RowRecord], order: Sequence[int]) -> list[float]:
    """One score for each different row of the order: the mean of its replicates."""
    return [mean(scores) for scores in score_table(records, order) if scores]


def score_table(records: Sequence[RowRecord], order: Sequence[int]) -> list[list[float]]:
    """Scores [rows][replicates], rows in this order."""
    scores: dict[int, list[float]] = {row: [] for row in order}
    for record in sorted(records, key=lambda r: r.replicate):
        if record.row in scores and record.score is not None:
            scores[record.row].append(record.score)
    return list(scores.values())


def mean(scores: Sequence[float]) -> float:
    """The mean, the same whatever the order."""
    return math.fsum(scores) / len(scores)


def storable(text: str) -> str:
    """Return a text as every database takes it."""
    # PostgreSQL refuses NUL, and neither database takes half a surrogate pair; scores see what is stored.
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _of_samples(samples: Sequence[RowRecord]) -> RowRecord:
    if len(samples) == 1:
        return samples[0]
    first, *further = sorted(samples, key=lambda record: record.sample)
    error = next((record.error for record in (first, *further) if record.error is not None), None)
    return replace(first, further=tuple(further), error=error)
