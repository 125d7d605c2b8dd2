"""A study as it can be read: its trials, rows, completions, the winner and the verdict.

Reads the database, never decodes or writes, and needs neither the model nor the process that searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.analysis.rescore import mean_score
from llmsearch_optuna.analysis.tables import completions_table, trials_table
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.optimize.set_aside import stored_set_aside
from llmsearch_optuna.progress import with_error
from llmsearch_optuna.stats.conditions import Limit
from llmsearch_optuna.stats.finalists import Selection, VarianceSplit, split_variance
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.records import Item, Look, Part
from llmsearch_optuna.storage.row_record import RowRecord, by_row, mean, score_table
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import (
    best_complete,
    direction_of,
    half_of,
    nearest,
    rows_counted,
    score_of,
)
from llmsearch_optuna.task.choices import TaskChoices
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.types import Direction


@dataclass(frozen=True)
class StudyView:
    """A study as it is now: its trials, rows, completions and verdict.

    Attributes:
        opened: The study with its records.
        task: What was searched on, while it is in memory; references and rows are read from the study otherwise.
    """

    opened: OpenedStudy
    task: PreparedTask | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.study.study_name!r}: {self.summary})"

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        return self.opened.study

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """All trials, as they were when the result was made."""
        return self.study.get_trials(deepcopy=False)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the study was started with: model, data, metric, direction, n_trials, baseline …"""
        return self.opened.records.settings()

    @cached_property
    def looks(self) -> list[Look]:
        """Every choice of a winner, with its verdict; the last one counts."""
        return self.opened.records.looks()

    @cached_property
    def set_aside(self) -> Mapping[int, str]:
        """Row number -> why the baseline could not decode it; such search rows count in no trial."""
        return stored_set_aside(self.opened)

    @property
    def has_best(self) -> bool:
        """Whether there is a best trial: one that is complete."""
        return any(t.state is TrialState.COMPLETE for t in self.trials)

    @property
    def best_trial(self) -> FrozenTrial:
        """The winner: chosen among the finalists where that has happened, else the best complete trial.

        Raises:
            StudyError: No trial is complete.
        """
        if self.looks:
            return self.trials[self.looks[-1].winner]
        best = best_complete(self.trials, self.direction) or nearest(self.trials, self._limits)
        if best is None:
            raise StudyError(
                f"no trial of the study {self.study.study_name!r} is complete; "
                f"{_first_failure(self.trials) or 'run it on'}"
            )
        return best

    @property
    def _limits(self) -> dict[str, float]:
        """Name of a condition -> its limit."""
        written = self.settings.get("constraints") or {}
        return {name: Limit.of(text).value for name, text in written.items()}

    @property
    def best_params(self) -> dict[str, Any]:
        """Everything that the winner decodes with, fixed values and the model's defaults included.

        What it chose of the task stands there by its label; see `best_task_options`.
        """
        return dict(self.best_trial.user_attrs["params"])

    @property
    def best_score(self) -> float:
        """The winner's score on the search rows: it won there, so expect less (see `expected_score`, `verdict`)."""
        value = score_of(self.best_trial)
        assert value is not None
        return value

    @property
    def best_score_error(self) -> float | None:
        """Standard error of the winner's mean on fresh replicates of the search rows (see `selection`), rows included.

        It says how far that mean may be from the score on all rows like these; that the winner was chosen for a high
        score is not in it (see `expected_score`). None until the finalists have been compared, and where a metric of
        all rows cannot be computed on parts of them.
        """
        selection = self._selection_with_errors
        return None if selection is None else selection.standard_error

    @property
    def expected_score(self) -> float | None:
        """The winner's shrunken mean on the search rows, by which it was chosen (see `selection`).

        None where `best_score_error` is: without errors nothing tells luck from merit.
        """
        selection = self._selection_with_errors
        return None if selection is None else selection.score

    @property
    def selection(self) -> Selection | None:
        """The finalists on fresh replicates, with shrunken means and their errors; None until they are compared."""
        return Selection.from_json(self.looks[-1].selection) if self.looks else None

    @property
    def power(self) -> str | None:
        """What a comparison on so many rows can find at all, from the baseline's scores; None without them."""
        found = self.study.user_attrs.get("power")
        return None if found is None else str(found)

    @property
    def variance(self) -> VarianceSplit | None:
        """How much of the winner's spread lies in the rows and how much in sampling; None for corpus metrics."""
        number = self.best_trial.number
        records = self.opened.records.rows("finalists", number) or self.records(number)
        table = score_table(records, list(dict.fromkeys(r.row for r in records)))
        is_even = len({len(scores) for scores in table}) == 1  # not while replicates are under way
        return split_variance(table) if table and all(table) and is_even else None

    @property
    def advice(self) -> str | None:
        """Whether more rows or more replicates would sharpen the winner's score; None where nothing is sampled."""
        found = self.variance
        return None if found is None or found.sampling_variance is None else found.advice

    @property
    def baseline_params(self) -> dict[str, Any]:
        """Everything that the baseline decodes with."""
        return dict(self.settings["baseline"])

    @property
    def verdict(self) -> Verdict | None:
        """Whether the winner beats the baseline on rows that no trial has seen; None until that has been looked at."""
        if not self.looks or self.looks[-1].verdict is None:
            return None
        return Verdict.from_json(self.looks[-1].verdict)

    @property
    def recommended_params(self) -> dict[str, Any]:
        """The winner's parameters where there is evidence for them, else the baseline's."""
        verdict = self.verdict
        return self.best_params if verdict is not None and verdict.recommends_winner else self.baseline_params

    @property
    def failures(self) -> dict[str, list[int]]:
        """Reason -> numbers of the trials that failed for it; the study went on without them."""
        found: dict[str, list[int]] = {}
        for t in self.trials:
            if t.state is TrialState.FAIL:
                found.setdefault(str(t.user_attrs.get("fail_reason") or "no reason is known"), []).append(t.number)
        return found

    @property
    def direction(self) -> Direction:
        """``"maximize"`` or ``"minimize"``: the metric's."""
        return direction_of(self.study)

    @property
    def objective_names(self) -> tuple[str, ...]:
        """One a value of a trial: ``"score"``, then those besides; see `search`."""
        names = tuple(map(str, self.settings.get("objectives") or ()))
        return names if len(names) == len(self.study.directions) else ("score", "tokens")[: len(self.study.directions)]

    @property
    def summary(self) -> str:
        """One or two sentences for people."""
        if not self.has_best:
            return f"no trial of {len(self.trials)} is complete. {_first_failure(self.trials) or ''}".strip()
        score = with_error(self.best_score, self.best_score_error)
        best = f"best of {len(self.trials)} trials: trial {self.best_trial.number} with {score}"
        baseline = self.score_on(self.trials[0], half_of(self.best_trial))
        if baseline is not None:
            best += f" (baseline {baseline:.4f})"
        rows = "the search rows" if half_of(self.best_trial) is None else "the half of the rows that it was searched on"
        return f"{best} on {rows}. {self.verdict.sentence if self.verdict else 'There is no verdict yet.'}"

    @cached_property
    def halves(self) -> tuple[tuple[int, ...], ...]:
        """Row numbers of the two halves that judge each other's winner, each in its order; empty for a holdout."""
        return tuple(tuple(map(int, half)) for half in self.settings.get("halves", ()))

    def score_on(self, trial: FrozenTrial, half: int | None = None) -> float | None:
        """A trial's score on the search rows, or on one half of them; None where it has none there.

        Args:
            trial: Of this study.
            half: 0 or 1, see `halves`; None for all rows that the trial is run on.
        """
        value = score_of(trial)
        if value is None or half is None or half_of(trial) == half:
            return value
        scores = self.row_scores(trial.number)
        known = [scores[row] for row in self.halves[half] if row in scores]
        return mean(known) if known else None

    @cached_property
    def choices(self) -> TaskChoices:
        """What of the task is searched: prompts, system messages, variables of the chat template; often nothing."""
        return TaskChoices.from_description(self.settings.get("choices") or {})

    @property
    def best_task_options(self) -> dict[str, Any]:
        """What the winner chose of the task, as `search` and `score` take it; empty where nothing was to be chosen.

        Such as ``{"prompt": "TL;DR {text}", "chat_template_kwargs": {"enable_thinking": False}}``. Of a prompt that is
        a function its name is left.
        """
        return self.choices.options(self.best_params)

    @property
    def recommended_task_options(self) -> dict[str, Any]:
        """The same of what is recommended; see `recommended_params`."""
        return self.choices.options(self.recommended_params)

    def prompt(self, row: int, trial: int = 0) -> str:
        """The prompt of a row that a trial's completion answers.

        Args:
            row: Its number.
            trial: The trial's number; the baseline by default.
        """
        place = self.choices.place(self.trial_params(trial)) if self.choices else 0
        return self.items[row].prompt if place == 0 else self._prompts_under(place).get(row, "")

    def _prompts_under(self, place: int) -> dict[int, str]:
        if place not in self._other_prompts:
            self._other_prompts[place] = self.opened.records.prompts(place)
        return self._other_prompts[place]

    @cached_property
    def _other_prompts(self) -> dict[int, dict[int, str]]:
        return {}

    def trial_params(self, number: int) -> dict[str, Any]:
        """Everything that a trial decodes with."""
        return dict(self._trial(number).user_attrs.get("params", {}))

    def row_scores(self, number: int, part: Part = "search") -> dict[int, float]:
        """Row number -> score (mean over the replicates) of the rows that count for this trial."""
        records = self.records(number, part)
        order = [r.row for r in records]
        return dict(zip(dict.fromkeys(order), by_row(records, order), strict=True)) if _scored(records) else {}

    def records(self, number: int, part: Part = "search") -> list[RowRecord]:
        """The rows that count for this trial, in the study's permutation."""
        return self._records(part).get(self._trial(number).number, [])

    def completions(self, trial: int | None = None, part: Part = "search") -> pd.DataFrame:
        """One line a row and replicate: prompt, reference, completion, score, finish reason, tokens.

        Where a model has thought before it answered, also its reasoning and the tokens of that. Where rows have several
        samples, the completion is the first of them, the tokens are those of all, and ``samples`` lists their texts.

        Args:
            trial: Its number; the winner by default.
            part: ``"search"`` or ``"holdout"`` (which only winners and the baseline have; with ``holdout="cross"``
                these are the rows that a winner was not chosen on).
        """
        number = self.best_trial.number if trial is None else self._trial(trial).number
        records = self.records(number, part)
        return completions_table(records, [self.prompt(r.row, number) for r in records], self.items)

    def trials_dataframe(self) -> pd.DataFrame:
        """One line a trial: number, role, state, value, kind, rows, tokens, seconds, reason, and parameters.

        Where the study has them, also the mean of each part of a weighted metric (``part_…``) and of each condition
        (``condition_…``) over the rows it did, whether it is ``feasible`` by their bound, its folds,
        and with ``holdout="cross"`` the ``half`` of the rows that it was run on.
        """
        return trials_table(self.trials)

    def rescore(self, metric: Any, *, part: Part = "search") -> pd.DataFrame:
        """Score the stored completions with another metric; nothing is decoded.

        The score of a row with several samples is the mean of theirs.

        Args:
            metric: As for `search`.
            part: ``"search"`` or ``"holdout"``.

        Returns:
            One line for every trial that did all its rows: number, role, value (the study's metric), and a column
            with the other metric's name.

        Raises:
            InputError: The metric cannot be used.
        """
        items = [item for item in self.items.values() if item.part == part or self.halves]
        other = Metric.of(metric).check([i.reference for i in items], [i.columns for i in items])
        lines = []
        for t in self.trials:
            records = self.records(t.number, part)
            if t.state is TrialState.COMPLETE and records and all(r.error is None for r in records):
                value = mean_score(other, records, self.items)
                role = t.user_attrs.get("role", "")
                lines.append({"number": t.number, "role": role, "value": score_of(t), other.name: value})
        return pd.DataFrame(lines, columns=["number", "role", "value", other.name])

    @property
    def _selection_with_errors(self) -> Selection | None:
        selection = self.selection
        return None if selection is None or _has_no_errors(selection) else selection

    @cached_property
    def items(self) -> dict[int, Item]:
        """Row number -> prompt, reference and columns."""
        return {item.row: item for item in self._live_items(self.opened.records.items())}

    def _live_items(self, items: Sequence[Item]) -> Sequence[Item]:
        """References as the metric knows them, where they are in memory."""
        if self.task is None:
            return items
        task = self.task
        return [
            Item(i.row, i.part, i.position, i.prompt, task.references[i.row], task.rows[i.row], i.occurrence)
            for i in items
        ]

    def _records(self, part: Part) -> dict[int, list[RowRecord]]:
        return self._search_records if part == "search" else self._holdout_records

    @cached_property
    def _search_records(self) -> dict[int, list[RowRecord]]:
        return {
            number: self._ordered(records, _rows_counted(self.trials[number]), half_of(self.trials[number]))
            for number, records in self.opened.records.all_rows("search").items()
            if number < len(self.trials)
        }

    @cached_property
    def _holdout_records(self) -> dict[int, list[RowRecord]]:
        return {number: self._ordered(rs, None) for number, rs in self.opened.records.all_rows("holdout").items()}

    def _ordered(self, records: Sequence[RowRecord], count: int | None, half: int | None = None) -> list[RowRecord]:
        places = self._places(half)
        set_aside = self.set_aside
        known = [r for r in records if r.row not in set_aside and (count is None or places[r.row] < count)]
        return sorted(known, key=lambda r: (places[r.row], r.replicate))

    def _places(self, half: int | None) -> Mapping[int, int]:
        """Row number -> place in the order in which a trial takes the rows."""
        if half is None:
            return {row: item.position for row, item in self.items.items()}
        return {row: place for place, row in enumerate(self.halves[half])}

    def _trial(self, number: int) -> FrozenTrial:
        if not 0 <= number < len(self.trials):
            raise InputError(f"there is no trial {number}; the study has {len(self.trials)}")
        return self.trials[number]


def _has_no_errors(selection: Selection) -> bool:
    return all(finalist.error == finalist.standard_error == 0.0 for finalist in selection.finalists)


def _rows_counted(trial: FrozenTrial) -> int | None:
    """How many rows of the permutation count: those of the last pruning step; all that are there while it runs."""
    return rows_counted(trial) if trial.state.is_finished() else None


def _scored(records: Sequence[RowRecord]) -> bool:
    return bool(records) and all(r.score is not None for r in records)


def _first_failure(trials: Sequence[FrozenTrial]) -> str | None:
    reasons = (t.user_attrs.get("fail_reason") for t in trials)
    first = next((str(reason) for reason in reasons if reason), None)
    return None if first is None else f"the first failure: {first}"
