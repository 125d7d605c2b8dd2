"""Events of a study, read from its database, for a process that watches its workers.

The database is the one place that all workers share, on one machine or on many, and nothing is lost in it when a
worker dies. Nothing is decided or written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.analysis.status import incumbent_mean, so_far, stage_of, work_of
from llmsearch_optuna.declaration import completed, part
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize.draws import stored_draws
from llmsearch_optuna.optimize.forecast import Forecast
from llmsearch_optuna.optimize.signals import resume_hint
from llmsearch_optuna.options import SearchOptions
from llmsearch_optuna.storage.leases import live_workers
from llmsearch_optuna.storage.study import OpenedStudy, read_study
from llmsearch_optuna.storage.trials import best_complete, direction_of, params_of, rows_asked, score_of

_STATES: dict[TrialState, progress.TrialState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_EVENT_OF_ATTRIBUTE: dict[str, Callable[[Any], progress.Event]] = {
    "forecast": lambda value: progress.StudyForecast(text=Forecast.from_json(value).text),
    "power": lambda value: progress.PowerKnown(text=value),
}
"""Attributes of a study that become an event, once."""


@dataclass
class StudyWatcher:
    """Gives a callback the events of a study, every time that its database is polled.

    Attributes:
        storage: Where the study is, or will be.
        study_name: Its name there.
        n_trials: Its total; None where the workers settle it.
        holdout_replicates: How often the holdout is decoded when something is sampled.
        trials_in_flight: How many trials are decoded together; says which one a trial is compared with.
        observer: Takes the events.
    """

    storage: str | None
    study_name: str
    n_trials: int | None
    holdout_replicates: int
    trials_in_flight: int
    observer: progress.Callback
    _opened: OpenedStudy | None = None
    _is_new: bool = False
    _is_started: bool = False
    _rows: int = 0
    _started: set[int] = field(default_factory=set)
    _ended: set[int] = field(default_factory=set)
    _rows_done: dict[int, int] = field(default_factory=dict)
    _looks: int = 0
    _stage: int = 0
    _attributes: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, arguments: Mapping[str, Any], observer: progress.Callback) -> StudyWatcher:
        """The watcher of the study that `search` makes from these arguments."""
        given = completed(SearchOptions, part(SearchOptions, arguments))
        return cls(
            storage=given["storage"],
            study_name=arguments["study_name"],
            n_trials=given["n_trials"],
            holdout_replicates=given["holdout_replicates"],
            trials_in_flight=given["trials_in_flight"],
            observer=observer,
        )

    def poll(self) -> None:
        """Emit what has happened since the last poll; a study that is not there yet is waited for."""
        if self._opened is None and not self._open():
            self._is_new = True
            return
        if not self._is_started:
            self._is_started = True
            self._emit_start(self._study)
        assert self._opened is not None
        self._emit_attributes(self._opened)
        trials = self._opened.study.get_trials(deepcopy=False)
        got_further = [self._emit_trial(trial, trials) for trial in trials if trial.number not in self._ended]
        if any(got_further):
            self._emit_work(self._opened, trials)
        self._emit_verdict(self._opened, trials)

    def resume_hint(self) -> str:
        """What to say when the user ends the study before its time."""
        if self._opened is None and not self._open():
            return "interrupted before the study had begun. Run the same command again to begin."
        return resume_hint(self._study, self._total)

    @property
    def trials_ended(self) -> int:
        """How many trials had ended at the last poll."""
        return len(self._ended)

    def close(self) -> None:
        """Let go of the database's connections."""
        if self._opened is not None:
            self._opened.close()

    def _open(self) -> bool:
        try:
            opened = read_study(self.storage, self.study_name)
        except StudyError:  # the first worker is about to make it, or says itself why it cannot
            return False
        self._rows = len(opened.records.items("search"))
        if not self._rows or not opened.records.settings():
            opened.close()
            return False
        self._opened = opened
        return True

    @property
    def _study(self) -> OpenedStudy:
        assert self._opened is not None
        return self._opened

    @property
    def _total(self) -> int:
        return self.n_trials or int(self._study.records.settings()["n_trials"])

    def _emit_start(self, opened: OpenedStudy) -> None:
        settings = opened.records.settings()
        trials = opened.study.get_trials(deepcopy=False)
        # Of a study that was not there at the first poll everything is news, however fast its workers were.
        self._ended = set() if self._is_new else {t.number for t in trials if t.state.is_finished()}
        self._looks = 0 if self._is_new else len(opened.records.looks())
        self._attributes = set(opened.study.user_attrs) if self._ended else set()
        best = best_complete(trials, direction_of(opened.study))
        self.observer.on(
            progress.StudyStarted(
                study_name=opened.name,
                n_trials=self._total,
                finished_trials=len(self._ended),
                rows=self._rows,
                storage=opened.url,
                metric=settings["metric"],
                direction=settings["direction"],
                best_number=None if best is None else best.number,
                best_value=None if best is None else score_of(best),
                baseline=str(settings.get("baseline_note", "")),
                split=str(settings.get("split_note", "")),
            )
        )

    def _emit_trial(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Whether it had got any further."""
        number, attributes = trial.number, trial.user_attrs
        if "params" not in attributes:
            return False
        if number not in self._started:
            self._started.add(number)
            params, kind = attributes["params"], attributes["kind"]
            rows = rows_asked(trial, self._study.records.settings())
            self.observer.on(progress.TrialStarted(number=number, params=params, kind=kind, rows=rows))
        seen, mean = so_far(self._study, trial)
        has_new_rows = mean is not None and seen > self._rows_done.get(number, 0)
        if mean is not None and has_new_rows:
            self._rows_done[number] = seen
            self.observer.on(
                progress.RowsScored(
                    number=number,
                    rows_done=seen,
                    rows_total=rows_asked(trial, self._study.records.settings()),
                    mean=mean,
                    incumbent_mean=incumbent_mean(
                        trials, trial, self.trials_in_flight, direction_of(self._study.study)
                    ),
                )
            )
        if trial.state.is_finished():
            self._ended.add(number)
            best = best_complete(trials, direction_of(self._study.study))
            self.observer.on(
                progress.TrialEnded(
                    number=number,
                    state=_STATES[trial.state],
                    value=trial.intermediate_values.get(seen) if trial.state is TrialState.PRUNED else score_of(trial),
                    reason=attributes.get("prune_reason") or attributes.get("fail_reason"),
                    seconds=attributes.get("seconds", 0.0),
                    is_best=best is not None and best.number == number,
                )
            )
        return has_new_rows or trial.state.is_finished()

    def _emit_work(self, opened: OpenedStudy, trials: Sequence[FrozenTrial]) -> None:
        workers = list(live_workers(opened.database, opened.key).values())
        self.observer.on(work_of(trials, opened.records.row_counts("search"), workers))

    def _emit_attributes(self, opened: OpenedStudy) -> None:
        """What a worker has found out about the study as a whole."""
        for name, value in opened.study.user_attrs.items():
            if name not in self._attributes and (event_of := _EVENT_OF_ATTRIBUTE.get(name)) is not None:
                self._attributes.add(name)
                self.observer.on(event_of(value))

    def _emit_verdict(self, opened: OpenedStudy, trials: Sequence[FrozenTrial]) -> None:
        looks = opened.records.looks()
        staged = stage_of(opened, looks[-1], trials) if looks else None
        seen = (len(looks), 1 if staged is None else staged.stage)
        if not looks or seen <= (self._looks, self._stage):
            return
        is_new, (self._looks, self._stage) = seen[0] > self._looks, seen
        if staged is not None:
            self.observer.on(staged)
        if staged is not None or not is_new:
            return
        halves = looks[-1].halves is not None
        rows = len(opened.records.items(None if halves else "holdout"))
        if rows and any(looks[-1].winners):
            drawn = any(stored_draws(opened).varies(params_of(trials[number])) for number in (0, *looks[-1].winners))
            replicates = self.holdout_replicates if drawn else 1
            self.observer.on(progress.VerdictStarted(rows=rows, replicates=replicates, halves=halves))
