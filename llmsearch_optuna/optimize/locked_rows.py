"""The rows on which a study's verdict was made, decoded once more: by another engine, or by the same one later.

These rows are locked: no trial has seen them, or where halves of the rows judge each other, none of the half that chose
the winner. What is decoded here is compared with what stands in the study, so data
and metric must be the study's own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmsearch_optuna.declaration import part
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.metrics.postprocess import postprocess_of
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.draws import PROBED_ROWS, stored_draws
from llmsearch_optuna.optimize.evaluation import SearchRows, requests_for
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine, resolve_engine
from llmsearch_optuna.optimize.scored_rows import score_without_failing
from llmsearch_optuna.options import LockedRowsOptions, ModelOptions, TaskOptions
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.records import as_stored
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import direction_of, params_of
from llmsearch_optuna.task.task import Task

logger = logging.getLogger("llmsearch_optuna.optimize.locked_rows")

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class LockedStudy:
    """A study with a verdict.

    Attributes:
        opened: The study.
        verdict: Its last one.
        winner: The number of the winner's trial.
    """

    opened: OpenedStudy
    verdict: Verdict
    winner: int

    @classmethod
    def of(cls, opened: OpenedStudy) -> LockedStudy:
        """The study as its last look left it.

        Raises:
            StudyError: It has no verdict, or one that compares nothing.
        """
        looks = opened.records.looks()
        if not looks or looks[-1].verdict is None:
            raise StudyError(f"the study {opened.name!r} has no verdict yet; run it to its end first")
        verdict = Verdict.from_json(looks[-1].verdict)
        if verdict.difference is None:
            raise StudyError(f"the study {opened.name!r} compared nothing on held-out rows: {verdict.sentence}")
        return cls(opened, verdict, looks[-1].winner)

    @cached_property
    def records(self) -> Mapping[int, Sequence[RowRecord]]:
        """What the study decoded on the rows that its verdict compares, by trial: of the baseline and of the winner."""
        found = {number: self.opened.records.rows("holdout", number) for number in (0, self.winner)}
        rows = set.intersection(*({r.row for r in records} for records in found.values()))
        rows -= {r.row for records in found.values() for r in records if r.error is not None}
        return {number: [r for r in records if r.row in rows] for number, records in found.items()}

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Their numbers, in the study's permutation."""
        known = {r.row for r in self.records[0]}
        return tuple(item.row for item in self.opened.records.items() if item.row in known)

    @cached_property
    def first_replicate(self) -> int:
        """The number of the first replicate that the verdict compares of what was decoded several times."""
        several = [{r.replicate for r in records} for records in self.records.values()]
        return min((min(numbers) for numbers in several if len(numbers) > 1), default=0)

    @property
    def seed(self) -> int:
        """The study's seed."""
        return int(self.opened.records.settings().get("seed", 0))

    def params(self, number: int) -> GenerationParams:
        """Everything that a trial decodes with."""
        return params_of(self.opened.study.get_trials(deepcopy=False)[number])


@dataclass(frozen=True)
class LockedRows:
    """The locked rows of a study, ready to be decoded.

    Attributes:
        study: The study.
        served: What decodes.
        rows: How they are asked and scored.
    """

    study: LockedStudy
    served: ResolvedEngine
    rows: SearchRows

    def params(self, number: int) -> GenerationParams:
        """What a trial decodes with, as this engine is told it.

        Raises:
            InputError: The engine cannot be told some of it; names what.
        """
        params = self.study.params(number)
        if self.served.model.takes_messages:
            params = self._without_special_tokens(params)
        if (problem := self.served.refusal(params.decoding, self.rows.task.reasoning)) is not None:
            raise InputError(f"{self.served.name} cannot decode with the parameters of trial {number}: {problem}")
        return params

    def requests(self, number: int, tag: Hashable) -> list[Request]:
        """The locked rows under a trial's parameters, as often as the study decoded them where texts vary.

        Args:
            number: Of the trial.
            tag: Whose requests they are.
        """
        params = self.params(number)
        repeats = max(1, self.study.verdict.replicates) if self.varies(params) else 1
        first = self.study.first_replicate if repeats > 1 else 0
        return requests_for(
            self.rows.task, params, tag, order=self.study.rows, replicates=range(first, first + repeats)
        )

    def varies(self, params: GenerationParams) -> bool:
        """Whether decoding again can give another text; greedy texts are asked for twice to find out."""
        return is_random(params) or self._greedy_varies

    @cached_property
    def _greedy_varies(self) -> bool:
        if stored_draws(self.study.opened).greedy_varies:
            return True
        greedy = next((p for p in map(self.params, (0, self.study.winner)) if not is_random(p)), None)
        if greedy is None:
            return False
        rows = self.rows.requests(greedy, ("search", 0), order=self.rows.order[:PROBED_ROWS], replicates=[0])
        found = self.served.backend.repetition(rows)
        return found is not None and not found.is_steady

    def _without_special_tokens(self, params: GenerationParams) -> GenerationParams:
        """Without the special tokens that are the model's own: a server that has loaded it knows them by itself."""
        own = self.study.opened.records.settings().get("model_defaults", {})
        own_params = GenerationParams.of({"max_new_tokens": 1}, {n: own[n] for n in SPECIAL_TOKENS if n in own})
        kept = {n: v for n, v in params.items() if n not in SPECIAL_TOKENS or v != own_params.get(n)}
        return GenerationParams.from_json(json.dumps(kept))

    def scored(self, records: Sequence[RowRecord]) -> list[RowRecord]:
        """The records that have a score, or under a corpus metric a text; says which have none."""
        left, _ = score_without_failing([r for r in records if r.error is None], self.rows.score)
        lost = sorted({r.row for r in records} - {r.row for r in left})
        if lost:
            logger.warning("rows %s could not be decoded or scored and do not count", lost)
        return [r for r in left if r.row not in lost]


def lock(
    opened: OpenedStudy,
    model: Any,
    dataset: Any,
    tokenizer: Any,
    options: LockedRowsOptions,
    constraints: Mapping[Any, str] | None = None,
) -> LockedRows:
    """Return the locked rows of a study, with the engine that is to decode them.

    Args:
        opened: A study with a verdict.
        model: See `search`.
        dataset: The study's own data.
        tokenizer: See `search`.
        options: Of `confirm` or `check`, those with defaults too.
        constraints: Those of the study that are to be looked at; see `search`.

    Raises:
        StudyError: The study has no verdict that compares anything.
        InputError: Data or metric are not the study's, or an argument cannot be used.
    """
    study = LockedStudy.of(opened)
    task = Task.of(dataset, **part(TaskOptions, options)).read()
    conditions = Constraints.of(constraints, postprocess=postprocess_of(task.postprocess))
    served = resolve_engine(model, tokenizer, part(ModelOptions, options))
    ready = task.prepare(served.tokenizer, takes_messages=served.model.takes_messages)
    ready = ready.as_started(opened.records.fingerprint().get("data", {}), served.tokenizer)
    direction = direction_of(opened.study)
    settings = opened.records.settings()
    for what, mine, theirs in (
        ("metric", ready.metric.name, settings.get("metric")),
        ("direction", ready.direction, direction),
    ):
        if mine != theirs:
            raise InputError(f"the study {opened.name!r} has {what} {theirs!r}, not {mine!r}: scores would not compare")
    _check_data(study, ready.rows, ready.references)
    rows = SearchRows(
        task=ready,
        order=study.rows,
        objectives=Objectives.of(("score",), direction),
        constraints=conditions.checked(ready),
    )
    return LockedRows(study, served, rows)


def _check_data(study: LockedStudy, rows: Sequence[Any], references: Sequence[Any]) -> None:
    items = {item.row: item for item in study.opened.records.items()}
    for number in study.rows:
        if number >= len(rows):
            raise InputError(
                f"the study {study.opened.name!r} holds out row {number}, and the data end after {len(rows)} rows: "
                "give the data that the study was made on"
            )
        item = items[number]
        if as_stored([item.columns, item.reference]) != as_stored([rows[number], references[number]]):
            raise InputError(
                f"row {number} is not what the study {study.opened.name!r} was made on: give the same data, with the "
                "same references"
            )
