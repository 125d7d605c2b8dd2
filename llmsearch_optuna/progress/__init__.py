"""What a study says while it runs, and who listens.

The search tells an `Observer` one frozen event at a time; it never prints. `Terminal` shows them to a person,
`Quiet` drops them. Nothing in here knows a study, a model or a database.
"""

from __future__ import annotations

from llmsearch_optuna.progress.events import (
    Event,
    Observer,
    PowerKnown,
    Quiet,
    RowsScored,
    StudyEnded,
    StudyForecast,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    TrialState,
    VerdictStarted,
    WorkMeasured,
)
from llmsearch_optuna.progress.format import describe_params, describe_work, printable, short_time, with_error
from llmsearch_optuna.progress.terminal import Terminal
from llmsearch_optuna.progress.view import InHand, TimeLeft, View, trial_line

__all__ = [
    "Event",
    "InHand",
    "Observer",
    "PowerKnown",
    "Quiet",
    "RowsScored",
    "StudyEnded",
    "StudyForecast",
    "StudyStarted",
    "Terminal",
    "TimeLeft",
    "TrialEnded",
    "TrialStarted",
    "TrialState",
    "VerdictStarted",
    "View",
    "WorkMeasured",
    "describe_params",
    "describe_work",
    "printable",
    "short_time",
    "trial_line",
    "with_error",
]
