"""The rows that a study searches on: in which order, what is asked of an engine for them, and how they are scored.

Row numbers are those of the task everywhere. Which parameters are tried, and when a trial ends, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llmsearch_optuna.engine.request import Request, draw_of
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.metrics.scoring import Answers
from llmsearch_optuna.optimize.constraints import NO_CONSTRAINTS, Constraints
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.signals import stoppable
from llmsearch_optuna.stats.group_sequential import MOST_STAGES
from llmsearch_optuna.stats.jackknife import influences
from llmsearch_optuna.stats.paired_tests import cluster_numbers
from llmsearch_optuna.storage.records import Phase
from llmsearch_optuna.storage.row_record import RowRecord, mean
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.types import Direction

STEP_SIZE = 8


@dataclass(frozen=True)
class SearchRows:
    """The search rows in the study's permutation, and how they are scored.

    Attributes:
        task: Prompts, references and the metric, by row number.
        order: Row numbers of the task, permuted.
        objectives: The values of a trial, and their directions.
        folds: The fold of each row of the order; empty where there are none.
        replicates: How often a row is decoded when something is sampled.
        first_step: Rows before the first pruning step.
        step_size: Rows between two pruning steps.
        constraints: The conditions that a winner has to keep.
        compares_all: Whether the winner is compared with all baselines, not only with the one in use.
    """

    task: PreparedTask
    order: tuple[int, ...]
    objectives: Objectives
    folds: tuple[int, ...] = ()
    replicates: int = 1
    first_step: int = STEP_SIZE
    step_size: int = STEP_SIZE
    constraints: Constraints = NO_CONSTRAINTS
    compares_all: bool = False

    def without(self, rows: Collection[int]) -> SearchRows:
        """The same rows without some of them."""
        if not rows:
            return self
        kept = [place for place, row in enumerate(self.order) if row not in rows]
        folds = tuple(self.folds[place] for place in kept) if self.folds else ()
        return replace(self, order=tuple(self.order[place] for place in kept), folds=folds)

    @property
    def direction(self) -> Direction:
        """``"maximize"`` or ``"minimize"``: the metric's."""
        return self.objectives.direction

    @property
    def most_stages(self) -> int:
        """In how many stages a reserve is decoded at most: one where all rows are needed at once.

        Conditions are shown on all of them; and when stages end is decided by the baseline in use, not by others.
        """
        return 1 if self.constraints or self.compares_all else MOST_STAGES

    @cached_property
    def places(self) -> dict[int, int]:
        """Row number -> place in the permutation."""
        return {row: place for place, row in enumerate(self.order)}

    @cached_property
    def steps(self) -> list[int]:
        """How many rows have been scored at each pruning step; the last one is all of them."""
        return [*range(self.first_step, len(self.order), self.step_size), len(self.order)]

    def replicates_of(self, params: GenerationParams) -> range:
        """The replicate numbers that these parameters need; one is enough where nothing is sampled."""
        return range(self.replicates if is_random(params) else 1)

    def score(self, records: Sequence[RowRecord]) -> list[RowRecord]:
        """The records with their scores; those of a corpus metric stay without.

        Raises:
            MetricError: The metric failed; names the row.
        """
        if self.task.metric.per_row is False or all(r.score is not None for r in records):
            return list(records)
        with stoppable():
            scores, parts = self.task.metric.scores_and_parts(self.answers(records))
        if not parts:
            return [record.scored(score) for record, score in zip(records, scores, strict=True)]
        by_record = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
        found = zip(records, scores, by_record, strict=True)
        return [record.scored(score, of_parts) for record, score, of_parts in found]

    def answers(self, records: Sequence[RowRecord]) -> Answers:
        """These records as metrics take them."""
        numbers = [r.row for r in records]
        return Answers(
            predictions=[r.text or "" for r in records],
            references=[self.task.references[n] for n in numbers],
            rows=[self.task.rows[n] for n in numbers],
            completions=[r.completion for r in records],
            numbers=numbers,
            samples=[r.completions for r in records] if any(r.further for r in records) else None,
        )

    def part_means(self, records: Sequence[RowRecord]) -> dict[str, float]:
        """The mean score of each part of a weighted metric, by name; empty for any other metric.

        Records that an earlier process has scored are scored again.

        Raises:
            MetricError: The metric failed; names the row.
        """
        names = self.task.metric.part_names
        if not names or not records:
            return {}
        known = [r for r in records if r.parts is not None]
        known += self.score([replace(r, score=None) for r in records if r.parts is None])
        return {name: mean([r.parts[name] for r in known if r.parts is not None]) for name in names}

    def value(self, records: Sequence[RowRecord]) -> float:
        """The score of all these records together: the mean, or the corpus metric's answer."""
        if self.task.metric.per_row is False:
            numbers = [r.row for r in records]
            with stoppable():
                return self.task.metric.score_corpus(
                    [r.text or "" for r in records],
                    [self.task.references[n] for n in numbers],
                    [self.task.rows[n] for n in numbers],
                    completions=[r.completion for r in records],
                    numbers=numbers,
                )
        return mean([r.score for r in records if r.score is not None])

    def fold_values(self, records: Sequence[RowRecord]) -> list[float]:
        """The score of each fold, from records of all rows; empty where there are no folds.

        Raises:
            MetricError: A corpus metric failed on the rows of a fold.
        """
        groups: list[list[RowRecord]] = [[] for _ in set(self.folds)]
        for record in records if self.folds else ():
            groups[self.folds[self.places[record.row]]].append(record)
        return [self.value(group) for group in groups]

    def requests(
        self,
        params: GenerationParams,
        tag: tuple[Phase, int],
        *,
        order: Sequence[int] | None = None,
        replicates: Sequence[int] | None = None,
    ) -> list[Request]:
        """All requests of one configuration, row by row, replicates and samples together.

        Args:
            params: How they are decoded.
            tag: Whose requests they are.
            order: Row numbers; those of the search by default.
            replicates: Replicate numbers; those that the parameters need by default.
        """
        return requests_for(
            self.task,
            params,
            tag,
            order=self.order if order is None else order,
            replicates=self.replicates_of(params) if replicates is None else replicates,
        )

    def iter_requests(self, params: GenerationParams, tag: tuple[Phase, int]) -> Iterator[Request]:
        """All requests of one configuration on the search rows, each made when it is asked for."""
        return iter_requests_for(self.task, params, tag, order=self.order, replicates=self.replicates_of(params))


def requests_for(
    task: PreparedTask, params: GenerationParams, tag: Hashable, *, order: Sequence[int], replicates: Sequence[int]
) -> list[Request]:
    """The requests for these rows and replicates of a task, row by row, replicates and samples together."""
    return list(iter_requests_for(task, params, tag, order=order, replicates=replicates))


def iter_requests_for(
    task: PreparedTask, params: GenerationParams, tag: Hashable, *, order: Sequence[int], replicates: Sequence[int]
) -> Iterator[Request]:
    """The same, each made when it is asked for."""
    asked, decoding = task.under(params), params.decoding
    return (
        Request(
            tag,
            row,
            asked.prompts[row],
            decoding,
            occurrence=asked.occurrences[row],
            replicate=draw_of(replicate, sample),
            add_special_tokens=asked.add_special_tokens[row],
            encode_args=asked.encode_args,
            chat=asked.chat(row),
            reasoning=task.reasoning,
            logprobs=task.metric.reads_logprobs,
        )
        for row in order
        for replicate in replicates
        for sample in range(params.samples)
    )


def prompt_table(rows: SearchRows, records: Sequence[RowRecord], order: Sequence[int]) -> list[list[float]]:
    """Scores [prompts][replicates]: rows with the same prompt count together, as their mean.

    A corpus metric has no scores by row; there it is what each prompt does to the whole (see `influences`).

    Args:
        rows: Say how records are scored.
        records: Of all rows of the order.
        order: Row numbers.

    Raises:
        MetricError: The corpus metric cannot be computed on parts of the rows.
    """
    labels = cluster_numbers([rows.task.distinct[row] for row in order])
    found: dict[int, dict[int, RowRecord]] = {}
    for record in sorted(records, key=lambda r: r.replicate):
        found.setdefault(record.replicate, {})[record.row] = record
    replicates = [[of[row] for row in order] for of in found.values()]
    if rows.task.metric.per_row is False:
        columns = [influences(_score_of_places(rows, ordered), labels) for ordered in replicates]
    else:
        sizes = np.bincount(labels)
        columns = [np.bincount(labels, np.array([r.score for r in of], dtype=np.float64)) / sizes for of in replicates]
    return [list(values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _score_of_places(rows: SearchRows, records: Sequence[RowRecord]) -> Callable[[Sequence[int]], float]:
    return lambda places: rows.value([records[place] for place in places])
