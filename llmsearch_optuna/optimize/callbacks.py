"""Callbacks of a search: throughput, batch sizes, power, forecast, and the study file of a study that has one.

Each is one entry of the list that takes a study's events. What it finds out goes back to the list as an event.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import optuna

from llmsearch_optuna import progress
from llmsearch_optuna.engine.memory import bytes_in_use, gpu_bytes, process_bytes
from llmsearch_optuna.fingerprint.diff import digest
from llmsearch_optuna.optimize.forecast import make_forecast
from llmsearch_optuna.optimize.plan import Plan
from llmsearch_optuna.optimize.planned_power import power_of
from llmsearch_optuna.optimize.prepare import Prepared
from llmsearch_optuna.optimize.probe import Probe
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine
from llmsearch_optuna.optimize.throughput import ThroughputMeter
from llmsearch_optuna.redaction import redacted_study_file
from llmsearch_optuna.storage.errors import storage_errors
from llmsearch_optuna.storage.records import StudyRecords
from llmsearch_optuna.storage.study import STUDY_FILE_ATTRIBUTE, OpenedStudy, read_study
from llmsearch_optuna.storage.trials import params_of

logger = logging.getLogger("llmsearch_optuna.optimize.callbacks")


@dataclass(frozen=True, slots=True)
class ThroughputCallback:
    """Measures the work after every pruning step and at the end of every trial.

    Attributes:
        meter: Has measured the work.
    """

    meter: ThroughputMeter

    def on(self, event: progress.Event) -> progress.WorkMeasured | None:
        """Return the throughput where rows were scored or a trial ended."""
        if not isinstance(event, progress.RowsScored | progress.TrialEnded):
            return None
        return progress.WorkMeasured(
            rows_per_second=self.meter.rows_per_second,
            replayed_share=self.meter.replayed_share,
            memory=process_bytes(),
            gpu_memory=gpu_bytes(),
        )


@dataclass
class BatchSizeCallback:
    """Starts the engine from the batch sizes that fitted before, and stores those that it learns.

    Attributes:
        records: Where the sizes are stored.
        served: The backend; one that does not learn batch sizes is left alone.
    """

    records: StudyRecords
    served: ResolvedEngine
    _stored: dict[tuple[int, int], int] = field(default_factory=dict)

    def on(self, event: progress.Event) -> None:
        """Load the sizes when the study starts, store them when a trial or the study ends."""
        learned = self.served.backend.batch_sizes
        if learned is None:
            return
        if isinstance(event, progress.StudyStarted):
            self._stored = self.records.batch_sizes(*self._key)
            self.served.backend.start_from(self._stored)
        elif isinstance(event, progress.TrialEnded | progress.StudyEnded):
            self._store(dict(learned))

    def _store(self, learned: dict[tuple[int, int], int]) -> None:
        if learned == self._stored:
            return
        self.records.remember_batch_sizes(*self._key, learned)
        self._stored = learned

    @property
    def _key(self) -> tuple[str, str]:
        return self.served.backend.device_name, digest(dict(self.served.description))


@dataclass(frozen=True)
class PowerCallback:
    """Says what so many rows can show at all, once all rows of the baseline are scored.

    Attributes:
        opened: The study.
        plan: Its rows.
        replicates: How often a row of the holdout is decoded when something is sampled.
    """

    opened: OpenedStudy
    plan: Plan
    replicates: int

    def on(self, event: progress.Event) -> progress.PowerKnown | None:
        """Return the power once the baseline is complete."""
        if not (isinstance(event, progress.TrialEnded) and event.number == 0 and event.state == "complete"):
            return None
        power = power_of(self.plan, self.opened.records.rows("search", 0), replicates=self.replicates)
        if power is None:
            return None
        self.opened.study.set_user_attr("power", power.text)
        return progress.PowerKnown(text=power.text)


@dataclass
class ForecastCallback:
    """Makes a new study's forecast once each trial that was started has been at its first pruning step.

    Those rows are the study's own, so the forecast costs nothing and changes nothing.

    Attributes:
        opened: The study.
        prepared: The study before it began.
        meter: Has measured the work.
        n_trials: See `search`.
        holdout_replicates: See `search`.
        finalists: See `search`.
    """

    opened: OpenedStudy
    prepared: Prepared
    meter: ThroughputMeter
    n_trials: int
    holdout_replicates: int
    finalists: int
    _started: set[int] = field(default_factory=set)
    _scored: set[int] = field(default_factory=set)
    _is_done: bool = False

    def on(self, event: progress.Event) -> progress.StudyForecast | None:
        """Return the forecast when the last of the first trials has scored its first rows."""
        match event:
            case progress.StudyStarted():
                self._is_done = event.finished_trials > 0
            case progress.TrialStarted():
                self._started.add(event.number)
            case progress.RowsScored():
                self._scored.add(event.number)
            case progress.TrialEnded() if event.state == "failed":
                self._started.discard(event.number)
        if self._is_done or not self._scored or not self._started <= self._scored:
            return None
        self._is_done = True
        return self._forecast()

    def _forecast(self) -> progress.StudyForecast:
        trials = self.opened.study.get_trials(deepcopy=False)
        records = {params_of(trials[n]): self.opened.records.rows("search", n) for n in sorted(self._started)}
        cached = int(self.prepared.served.stats.get("cache_bytes", 0))
        forecast = make_forecast(
            Probe(records, list(self.meter.spans), cached),
            self.prepared,
            n_trials=self.n_trials,
            holdout_replicates=self.holdout_replicates,
            finalists=self.finalists,
            memory_in_use=bytes_in_use(),
        )
        self.opened.study.set_user_attr("forecast", forecast.to_json())
        return progress.StudyForecast(text=forecast.text)


@dataclass
class StudyFileCallback:
    """Stores the study file's text in the study.

    A study that has none gets it at once. One that has another gets it with the first trial that ends: workers refuse
    a study that was started with something else only after the event of its start, and then the old text must stay.

    Attributes:
        storage: Where the study is, as the study file says it: what events say of it lacks the password.
        study_name: Its name there.
        text: What is stored.
    """

    storage: str | None
    study_name: str
    text: str
    _is_stored: bool = False

    def on(self, event: progress.Event) -> None:
        """Store the text, once."""
        if self._is_stored:
            return
        if isinstance(event, progress.StudyStarted):
            with self._study() as study:
                if STUDY_FILE_ATTRIBUTE not in study.user_attrs:
                    self._store(study)
        elif isinstance(event, progress.TrialEnded | progress.StudyEnded):
            with self._study() as study:
                self._store(study)

    def _store(self, study: optuna.Study) -> None:
        study.set_user_attr(STUDY_FILE_ATTRIBUTE, redacted_study_file(self.text))
        self._is_stored = True

    @contextlib.contextmanager
    def _study(self) -> Iterator[optuna.Study]:
        opened = read_study(self.storage, self.study_name)
        with contextlib.closing(opened), storage_errors(opened.address):
            yield opened.study
