"""Scores one set of parameters on a dataset, without a study: before tuning, after tuning, on other rows."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.declaration import part
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.engine.sampling.reasoning import reasoning_span
from llmsearch_optuna.errors import DecodingError, InputError, describe_error, short
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.optimize.decode import decode_all
from llmsearch_optuna.optimize.evaluation import requests_for
from llmsearch_optuna.optimize.resolve_engine import resolve_engine
from llmsearch_optuna.optimize.space_points import inert_warning, sample_problem
from llmsearch_optuna.options import ScoreOptions, TaskOptions
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer, mean
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.task import Task

logger = logging.getLogger("llmsearch_optuna.optimize.score")


@dataclass(frozen=True)
class Score:
    """How one set of parameters does on a dataset.

    Attributes:
        score: The mean over the rows, or the corpus metric's answer.
        scores: One a row (mean over the replicates), in the order of the data; empty for a corpus metric.
        completions: One a row (the first replicate and sample), in the order of the data.
        samples: All samples of each row (of the first replicate), in the order of the data.
        params: Everything that was decoded with, the model's own defaults included.
        prompts: What the model saw.
        references: What the metric compared with.
        parts: The mean score of each part of a weighted metric, by name; empty for any other metric.
    """

    score: float
    scores: tuple[float, ...]
    completions: tuple[Completion, ...]
    params: Mapping[str, Any]
    prompts: tuple[str, ...]
    references: tuple[Any, ...]
    parts: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[tuple[Completion, ...], ...] = ()

    def __repr__(self) -> str:
        return f"Score(score={self.score:.6g}, rows={len(self.completions)}, params={dict(self.params)!r})"


def score_params(model: Any, dataset: Any, params: Mapping[str, Any], tokenizer: Any, options: ScoreOptions) -> Score:
    """Decode every row under one set of parameters, and score it; see `score`, whose arguments these are.

    Raises:
        InputError: An argument cannot be used.
        DecodingError: A row could not be decoded, or the metric failed on it; names the row.
    """
    on_row = _guarded(options["on_row"])
    task = Task.of(dataset, **part(TaskOptions, options))
    _refuse_space(params)
    if not isinstance(samples := options["samples"], int):
        raise InputError(f"samples={samples!r}: score draws one number of samples; search takes several")
    task = task.read()  # a mistyped path is said at once, not after minutes of loading
    served = resolve_engine(model, tokenizer, options).with_defaults(task.generation).drawing(samples)
    checked = GenerationParams.of(task.choices.labelled(params), served.defaults)
    checked.max_new_tokens  # noqa: B018 - asked for early, so that it is missed early
    if warning := inert_warning({"": checked.inert}):
        logger.warning("%s", warning)
    span = reasoning_span(task.reasoning, served.tokenizer)
    if (problem := served.refusal(checked.decoding, span)) is not None:
        raise InputError(problem)
    prepared = task.prepare(served.tokenizer, takes_messages=served.model.takes_messages).under(checked)
    served.check_logprobs(prepared.metric)
    if (problem := sample_problem(prepared.metric, checked)) is not None:
        raise InputError(problem)
    prepared.check_lengths(served.prompt_tokens, served.positions, checked.max_new_tokens)
    return _score(prepared, served.backend, checked, options["replicates"], on_row)


def _guarded(on_row: Any) -> Callable[[int, int], None] | None:
    """The user's function for progress, whose errors say whose they are."""
    if on_row is None:
        return None
    if not callable(on_row):
        raise InputError(f"on_row={short(on_row)} must be a function of (rows done, rows in all)")

    def call(done: int, total: int) -> None:
        try:
            on_row(done, total)
        except Exception as error:
            raise InputError(f"on_row= failed at row {done} of {total}: {describe_error(error)}") from error

    return call


def _refuse_space(params: Any) -> None:
    """Raise InputError where this is what `search` takes: branches, a function, a space, or a dict that searches."""
    searched = isinstance(params, Mapping) and [n for n, v in params.items() if isinstance(v, BaseDistribution)]
    if not isinstance(params, Mapping) or searched:
        what = (
            f"{', '.join(map(str, searched))} is to be searched" if searched else f"params={short(params)} is no dict"
        )
        raise InputError(f"{what}: score takes one set of generation parameters; search takes spaces")


def _score(
    task: PreparedTask,
    server: RequestHandler,
    params: GenerationParams,
    replicates: int,
    on_row: Callable[[int, int], None] | None,
) -> Score:
    repeats = range(replicates if is_random(params) else 1)
    tag = object()
    requests = requests_for(task, params, tag, order=range(len(task)), replicates=repeats)
    records = _decode(server, requests, on_row, params.samples)
    scores: list[float] = []
    values: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    for replicate in repeats:
        samples = [records[row, replicate].completions for row in range(len(task))]
        completions = [of_row[0] for of_row in samples]
        texts = [completion.text for completion in completions]
        if task.metric.per_row is False:
            values.append(task.metric.score_corpus(texts, task.references, task.rows, completions=completions))
            continue
        answers = Answers(
            predictions=texts,
            references=task.references,
            rows=task.rows,
            completions=completions,
            samples=samples if params.samples > 1 else None,
        )
        of_rows, of_parts = task.metric.scores_and_parts(answers)
        scores += of_rows
        for name, found in of_parts.items():
            parts[name] += found
    by_row = [mean(scores[row :: len(task)]) for row in range(len(task))] if scores else []
    return Score(
        score=mean(by_row) if by_row else mean(values),
        scores=tuple(by_row),
        completions=tuple(records[row, 0].completion for row in range(len(task))),
        params=params.canonical,
        prompts=task.prompts,
        references=task.references,
        parts={name: mean(found) for name, found in parts.items()},
        samples=tuple(records[row, 0].completions for row in range(len(task))),
    )


def _decode(
    server: RequestHandler, requests: list[Request], on_row: Callable[[int, int], None] | None, samples: int
) -> dict[tuple[int, int], RowRecord]:
    records: dict[tuple[int, int], RowRecord] = {}
    gatherer = SampleGatherer(samples)

    def take(finished: Sequence[Finished]) -> None:
        draws = [RowRecord.of(item) for item in finished]
        for draw in draws:
            if draw.error is not None:
                raise DecodingError(f"row {draw.row}: {draw.error}")
        records.update({(r.row, r.replicate): r for r in gatherer.add(draws)})
        if on_row is not None:
            on_row(len(records), len(requests) // samples)

    decode_all(server, requests, take)
    return records
