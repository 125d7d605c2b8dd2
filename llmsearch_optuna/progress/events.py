"""The events of a study, and the protocol of the callbacks that take them.

Events carry plain data only: no study, no model, no text from a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

TrialState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStarted:
    """A study was opened, new or resumed.

    Attributes:
        n_trials: The study's total, not what is left.
        finished_trials: How many ended in earlier sessions.
        rows: Rows of the search, without the holdout.
        storage: Where the study lives, without a password.
        best_number: The best complete trial of earlier sessions, with ``best_value``.
        baseline: What the baseline is, in words.
        split: Why not all rows are searched, in words; empty where they are.
    """

    study_name: str
    n_trials: int
    finished_trials: int
    rows: int
    storage: str
    metric: str = "score"
    direction: str = "maximize"
    best_number: int | None = None
    best_value: float | None = None
    baseline: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A trial's requests were queued; `kind` is its kind of decoding (greedy, sampling, beam …)."""

    number: int
    params: Mapping[str, Any]
    kind: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsScored:
    """A pruning step: the running mean after `rows_done` rows, and the incumbent's mean over the same rows."""

    number: int
    rows_done: int
    rows_total: int
    mean: float
    incumbent_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkMeasured:
    """How the work goes at the moment; None where it is not known.

    Attributes:
        rows_per_second: Rows that were decoded a second of late, for all running trials together.
        replayed_share: The share of all tokens that were picked from scores known before, not computed.
        memory: Bytes of main memory that the process takes; of several, the one that ended a trial last.
        gpu_memory: Bytes that it takes on its CUDA devices; None where it has none.
    """

    rows_per_second: float | None = None
    replayed_share: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyForecast:
    """What the study will take, seen from its first rows: a line or two for people."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerKnown:
    """What the rows can show at all, seen from the baseline's scores: a few sentences for people."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnding:
    """A trial is about to be stored as ended; what is written for this event is written again after a crash.

    Attributes:
        rows_done: How many rows of the study's permutation count for it.
    """

    number: int
    state: TrialState
    value: float | None
    reason: str | None
    rows_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """A trial ended; `reason` says why it was pruned or failed, `seconds` is wall time."""

    number: int
    state: TrialState
    value: float | None
    reason: str | None = None
    seconds: float = 0.0
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictStarted:
    """The winner is stored; it and the baseline are decoded on the holdout (`rows` rows, `replicates` times).

    Of a reserve there is one such event a stage, and `rows` are those of all stages until its end. With `halves` there
    are two winners, each decoded on the half of the rows that it was not chosen on.
    """

    rows: int
    replicates: int
    stage: int = 1
    stages: int = 1
    halves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEnded:
    """Nothing more will be decoded; the summary is one or two sentences for people."""

    result_summary: str = ""


Event: TypeAlias = (
    StudyStarted
    | StudyForecast
    | PowerKnown
    | TrialStarted
    | RowsScored
    | WorkMeasured
    | TrialEnding
    | TrialEnded
    | VerdictStarted
    | StudyEnded
)


class Callback(Protocol):
    """Takes the events of a study, one after the other, in the thread of the search: be quick."""

    def on(self, event: Event) -> Event | None:
        """Take note of one event.

        Returns:
            Another event that goes to all callbacks of the list next, or None. What a user's callback returns is
            ignored.

        Raises:
            KeyboardInterrupt: Ends the study as Ctrl-C does.
        """
        ...


class Quiet:
    """Shows nothing."""

    def on(self, event: Event) -> None:
        """Drop the event."""
