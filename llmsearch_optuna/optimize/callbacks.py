"""What so many rows can show at all, told as soon as the baseline has scores: before a search, and in its beginning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import optuna

from llmsearch_optuna import progress
from llmsearch_optuna import progress as events
from llmsearch_optuna.engine.memory import bytes_in_use, gpu_bytes, process_bytes
from llmsearch_optuna.fingerprint.diff import digest
from llmsearch_optuna.optimize.forecast import Probe, make_forecast, power_of
from llmsearch_optuna.optimize.plan import Plan, Prepared
from llmsearch_optuna.optimize.resolve_engine import Served
from llmsearch_optuna.optimize.throughput import MeteredServer
from llmsearch_optuna.progress import Event, Observer, StudyEnded, StudyStarted, TrialEnded
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.records import Ledger
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE, OpenedStudy, read_study
from llmsearch_optuna.storage.trials import params_of

logger = logging.getLogger("llmsearch_optuna.optimize.callbacks")


@dataclass(frozen=True)
class PowerTeller:
    """Passes events on; once the baseline's scores are there, says what so many rows can show at all."""

    observer: events.Observer
    opened: OpenedStudy
    plan: Plan
    replicates: int

    def on(self, event: events.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if isinstance(event, events.TrialEnded) and event.number == 0 and event.state == "complete":
            self._tell()

    def _tell(self) -> None:
        power = power_of(self.plan, self.opened.ledger.rows("search", 0), replicates=self.replicates)
        if power is not None:
            self.opened.study.set_user_attr("power", power.text)
            self.observer.on(events.PowerKnown(text=power.text))


@dataclass
class BatchSizeKeeper:
    """Passes events on; starts the engine from the batch sizes that fitted before, and stores what it learns.

    Attributes:
        observer: Is told everything.
        ledger: Where the sizes are kept.
        served: The engine; one that does not learn batch sizes is left alone.
    """

    observer: progress.Observer
    ledger: Ledger
    served: Served
    _kept: dict[tuple[int, int], int] = field(default_factory=dict)

    def on(self, event: progress.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if not hasattr(self._engine, "batch_sizes"):
            return
        if isinstance(event, progress.StudyStarted):
            self._kept = self.ledger.batch_sizes(*self._place)
            self._engine.start_from(self._kept)
        elif isinstance(event, progress.TrialEnded | progress.StudyEnded):
            self._keep(dict(self._engine.batch_sizes))

    def _keep(self, learned: dict[tuple[int, int], int]) -> None:
        if learned == self._kept:
            return
        self.ledger.remember_batch_sizes(*self._place, learned)
        self._kept = learned

    @property
    def _engine(self) -> Any:
        return self.served.engine

    @property
    def _place(self) -> tuple[str, str]:
        return self._engine.device_name, digest(dict(self.served.description))


@dataclass
class StudyFileKeeper:
    """Passes events on, and stores the study file's text in the study.

    A study that has none gets it at once. One that has another gets it with the first trial that ends: workers refuse
    a study that was started with something else only after its start was told, and then the old text must stay.

    Attributes:
        observer: Is told.
        storage: Where the study is, as the study file says it: what events say of it lacks the password.
        study_name: Its name there.
        text: What is stored.
    """

    observer: Observer
    storage: str | None
    study_name: str
    text: str
    _is_stored: bool = False

    def on(self, event: Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if self._is_stored:
            return
        if isinstance(event, StudyStarted):
            with self._study() as study:
                if STUDY_FILE_ATTRIBUTE not in study.user_attrs:
                    self._store(study)
        elif isinstance(event, TrialEnded | StudyEnded):
            with self._study() as study:
                self._store(study)

    def _store(self, study: optuna.Study) -> None:
        study.set_user_attr(STUDY_FILE_ATTRIBUTE, self.text)
        self._is_stored = True

    @contextlib.contextmanager
    def _study(self) -> Iterator[optuna.Study]:
        opened = read_study(self.storage, self.study_name)
        with contextlib.closing(opened), storage_errors(opened.engine.url):
            yield opened.study


@dataclass
class ForecastTeller:
    """Passes events on; tells a new study's forecast once each trial that has begun has taken its first look.

    Those rows are the study's own, so the forecast costs nothing and changes nothing.

    Attributes:
        observer: Is told.
        opened: The study.
        prepared: The study before it began.
        server: Has measured the work.
        n_trials: See `search`.
        holdout_replicates: See `search`.
    """

    observer: events.Observer
    opened: OpenedStudy
    prepared: Prepared
    server: MeteredServer
    n_trials: int
    holdout_replicates: int
    _begun: set[int] = field(default_factory=set)
    _looked: set[int] = field(default_factory=set)
    _is_done: bool = False

    def on(self, event: events.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        match event:
            case events.StudyStarted():
                self._is_done = event.finished_trials > 0
            case events.TrialStarted():
                self._begun.add(event.number)
            case events.RowsScored():
                self._looked.add(event.number)
            case events.TrialEnded() if event.state == "failed":
                self._begun.discard(event.number)
        if not self._is_done and self._looked and self._begun <= self._looked:
            self._is_done = True
            self._tell()

    def _tell(self) -> None:
        trials = self.opened.study.get_trials(deepcopy=False)
        records = {params_of(trials[n]): self.opened.ledger.rows("search", n) for n in sorted(self._begun)}
        cached = int(self.prepared.served.stats.get("cache_bytes", 0))
        forecast = make_forecast(
            Probe(records, list(self.server.spans), cached),
            self.prepared,
            n_trials=self.n_trials,
            holdout_replicates=self.holdout_replicates,
            memory_in_use=bytes_in_use(),
        )
        self.opened.study.set_user_attr("forecast", forecast.to_json())
        self.observer.on(events.StudyForecast(text=forecast.text))


@dataclass(frozen=True, slots=True)
class WorkTeller:
    """Passes events on; says after every look and at every trial's end how the work goes.

    Attributes:
        observer: Is told.
        server: Has measured the work.
    """

    observer: progress.Observer
    server: MeteredServer

    def on(self, event: progress.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if isinstance(event, progress.RowsScored | progress.TrialEnded):
            measured = progress.WorkMeasured(
                rows_per_second=self.server.rows_per_second,
                replayed_share=self.server.replayed_share,
                memory=process_bytes(),
                gpu_memory=gpu_bytes(),
            )
            self.observer.on(measured)
