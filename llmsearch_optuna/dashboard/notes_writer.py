"""Puts notes, the objective's name and our figures into a study, while it runs and when it ends.

A trial's note is written before the trial is stored as ended, so that a crash in between writes it again. Everything
else can be made from the study at any time.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna

from llmsearch_optuna import progress
from llmsearch_optuna.analysis.view import StudyView
from llmsearch_optuna.dashboard.notes import STUDY_HEADING, NotedRow, study_note, trial_note
from llmsearch_optuna.dashboard.study_attributes import StudyAttributes, is_noted
from llmsearch_optuna.fingerprint.diff import digest
from llmsearch_optuna.metrics.aggregates import votes_in_words
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.report.collect import collect
from llmsearch_optuna.report.data import ReportData
from llmsearch_optuna.report.figures import FIGURES, drawable
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy, library_versions
from llmsearch_optuna.storage.trials import score_of

logger = logging.getLogger("llmsearch_optuna.dashboard")

NOT_INSTALLED = (
    "the dashboard is an extra that is not installed; get it with: pip install 'llmsearch-optuna[dashboard]'"
)
SECONDS_BETWEEN_REFRESHES = 30.0
REFRESH_SHARE = 0.01
"""At most this share of a study's time goes into keeping its page in the dashboard fresh."""

_FIGURES_SHOWN = {
    "holdout_differences": "Winner minus baseline, by holdout row",
    "score_against_tokens": "Score against tokens",
    "importances": "What mattered, pruned trials included",
    "rows_done": "Rows scored before each trial ended",
}


def is_installed() -> bool:
    """Whether optuna-dashboard can be imported."""
    return importlib.util.find_spec("optuna_dashboard") is not None


def describe_study(study: optuna.Study, data: ReportData) -> None:
    """Write note, objective name and figures into the study; does nothing when the dashboard is not installed."""
    if not is_installed():
        return
    import optuna_dashboard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([data.metric, *data.objectives][: len(study.directions)])
    # A note that somebody changed in the dashboard is theirs; only ours is replaced.
    old, new = optuna_dashboard.get_note(study), study_note(data)
    if old != new and (not old or old.startswith(STUDY_HEADING)):
        optuna_dashboard.save_note(study, new)
    shown = drawable(data)
    for name, title in _FIGURES_SHOWN.items():
        if name in shown:
            figure = FIGURES[name](data).update_layout(title_text=title, title_x=0.02, margin_t=80)
            optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=f"llmsearch-{name}")


def describe_all(result: StudyView) -> None:
    """Describe a study that exists, and those of its trials that ended where the dashboard was not installed."""
    if not is_installed():
        return
    import optuna_dashboard

    attributes = StudyAttributes(result.opened)
    _write_page(result, attributes)
    minimize = result.direction == "minimize"
    for trial in result.trials:
        if not trial.state.is_finished() or is_noted(trial):
            continue
        live = attributes.trial_of(trial)
        if not optuna_dashboard.get_note(live):
            noted = [
                NotedRow(
                    r.row,
                    result.prompt(r.row, trial.number),
                    _shown(r, None if result.task is None else result.task.metric),
                    as_text(result.items[r.row].reference),
                    r.score,
                )
                for r in result.records(trial.number)
            ]
            reason = trial.user_attrs.get("prune_reason") or trial.user_attrs.get("fail_reason")
            state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[trial.state.name]
            headline = _headline(state, score_of(trial) if state == "complete" else None, reason)
            optuna_dashboard.save_note(live, trial_note(headline, noted, minimize=minimize))


@dataclass(frozen=True)
class TrialNoteCallback:
    """Writes the note of a trial that is about to end.

    Attributes:
        opened: The study.
        rows: The search rows, with their prompts and references.
    """

    opened: OpenedStudy
    rows: SearchRows

    def on(self, event: progress.Event) -> None:
        """Write the note before the trial is stored as ended; does nothing when the dashboard is not installed."""
        if isinstance(event, progress.TrialEnding) and is_installed():
            self._write(event)

    def _write(self, event: progress.TrialEnding) -> None:
        import optuna_dashboard

        trial = self.opened.study.get_trials(deepcopy=False)[event.number]
        task = self.rows.task.under(trial.user_attrs.get("params", {})) if event.rows_done else self.rows.task
        counted = set(self.rows.order[: event.rows_done])
        records = [r for r in self.opened.records.rows("search", event.number) if r.row in counted]
        noted = [
            NotedRow(r.row, task.prompts[r.row], _shown(r, task.metric), as_text(task.references[r.row]), r.score)
            for r in sorted(records, key=lambda r: (self.rows.places[r.row], r.replicate))
        ]
        note = trial_note(
            _headline(event.state, event.value, event.reason), noted, minimize=self.rows.direction == "minimize"
        )
        optuna_dashboard.save_note(self._attributes.trial(event.number), note)
        self._attributes.mark_noted(event.number)

    @cached_property
    def _attributes(self) -> StudyAttributes:
        return StudyAttributes(self.opened)


@dataclass
class StudyPageCallback:
    """Keeps the study's page in the dashboard up to date.

    Attributes:
        result: Makes the result of the study as it is now.
    """

    result: Callable[[], StudyView]
    _due: float = field(default=0.0)

    def on(self, event: progress.Event) -> None:
        """Write the page of a new study when it starts, of any when it ends, and now and then when a trial has ended.

        A study that goes on has a page, of when it stopped.
        """
        match event:
            case progress.StudyStarted() if event.finished_trials:
                self._due = time.monotonic() + SECONDS_BETWEEN_REFRESHES
            case progress.StudyStarted() | progress.StudyEnded():
                self._refresh()
            case progress.TrialEnded() if time.monotonic() >= self._due:
                self._refresh()

    def _refresh(self) -> None:
        if not is_installed():
            return
        started = time.monotonic()
        try:
            result = self.result()
            _write_page(result, StudyAttributes(result.opened))
        except Exception as problem:  # a page that could not be refreshed must not end a study
            logger.warning("the study's page in the dashboard is not up to date: %s", problem)
        ended = time.monotonic()
        self._due = ended + max(SECONDS_BETWEEN_REFRESHES, (ended - started) / REFRESH_SHARE)


def _write_page(result: StudyView, attributes: StudyAttributes) -> None:
    """Write the study's page, unless what is there shows this state of it."""
    state = digest(
        {
            "versions": library_versions(),
            "finished": sum(trial.state.is_finished() for trial in result.trials),
            "looks": [[look.look, look.winner, look.verdict] for look in result.looks],
            "attributes": result.study.user_attrs,
        }
    )
    if attributes.page_state != state:
        describe_study(attributes.study, collect(result))
        attributes.page_state = state


def as_text(reference: Any) -> str:
    """A reference as people read it; nothing where there is none."""
    if reference is None:
        return ""
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False, default=str)


def _shown(record: RowRecord, metric: Metric | None) -> str:
    """A row's first text, and how its samples voted where it has several."""
    votes = votes_in_words(metric, record.completions)
    return f"[{votes}] {record.text or ''}" if votes else record.text or ""


def _headline(state: str, value: float | None, reason: str | None) -> str:
    return state + ("" if value is None else f", {value:.4f}") + (f": {reason}" if reason else "")
