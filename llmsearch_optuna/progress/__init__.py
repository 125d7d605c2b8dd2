"""The events of a study, and callbacks that take them.

The search gives a list of callbacks one frozen event at a time; it never prints. `Terminal` shows them to a person,
`Quiet` drops them. Nothing in here knows a study, a model or a database.
"""

from __future__ import annotations

from llmsearch_optuna.progress.callback_list import CallbackList, GuardedCallback, guard
from llmsearch_optuna.progress.events import (
    Callback,
    Event,
    PowerKnown,
    Quiet,
    RowsScored,
    StudyEnded,
    StudyForecast,
    StudyStarted,
    TrialEnded,
    TrialEnding,
    TrialStarted,
    TrialState,
    VerdictStarted,
    WorkMeasured,
)
from llmsearch_optuna.progress.format import (
    describe_params,
    describe_verdict,
    describe_work,
    printable,
    short_time,
    with_error,
)
from llmsearch_optuna.progress.terminal import Terminal
from llmsearch_optuna.progress.time_left import TimeLeft
from llmsearch_optuna.progress.view import RunningTrial, View, trial_line

__all__ = [
    "Callback",
    "CallbackList",
    "Event",
    "GuardedCallback",
    "PowerKnown",
    "Quiet",
    "RowsScored",
    "RunningTrial",
    "StudyEnded",
    "StudyForecast",
    "StudyStarted",
    "Terminal",
    "TimeLeft",
    "TrialEnded",
    "TrialEnding",
    "TrialStarted",
    "TrialState",
    "VerdictStarted",
    "View",
    "WorkMeasured",
    "describe_params",
    "describe_verdict",
    "describe_work",
    "guard",
    "printable",
    "short_time",
    "trial_line",
    "with_error",
]
