"""Shows a study to a person: a live view in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from llmsearch_optuna.progress.events import (
    Event,
    PowerKnown,
    RowsScored,
    StudyEnded,
    StudyForecast,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    VerdictStarted,
    WorkMeasured,
)
from llmsearch_optuna.progress.format import describe_params, describe_verdict, describe_work, printable, short_time
from llmsearch_optuna.progress.time_left import TimeLeft
from llmsearch_optuna.progress.view import RunningTrial, View, trial_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_WORK_LINES = 60.0


class Terminal:
    """Shows a study to a person: a live view in a terminal, plain lines anywhere else.

    Use it as a context manager, so that an interrupted study gives the terminal back.

    Args:
        console: Where to; standard error by default.
        show_summary: Whether to end with the study's result in a line.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        show_summary: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if console is None:
            from rich.console import Console as RichConsole

            console = RichConsole(stderr=True, highlight=False)
        self._console = console
        self._show_summary = show_summary
        self._clock = clock
        self._started = clock()
        self._time_left = TimeLeft(clock=clock)
        self._view: View | None = None
        self._live: Live | None = None
        self._last_line = clock()
        self._last_work_line = clock()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live view; harmless when there is none."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StudyStarted():
                self._study_started(event)
            case StudyForecast():
                for line in event.text.splitlines():
                    self._line(line)
            case PowerKnown():
                self._paragraph(event.text)
            case TrialStarted():
                self._trial_started(event)
            case RowsScored():
                self._rows_scored(event)
            case WorkMeasured():
                self._work_measured(event)
            case TrialEnded():
                self._trial_ended(event)
            case VerdictStarted():
                self._verdict_started(event)
            case StudyEnded():
                self._study_ended(event)
        if self._live is not None:
            self._live.update(self._render())

    def _study_started(self, event: StudyStarted) -> None:
        best = (event.best_number, event.best_value)
        self._view = View(
            study=event,
            ended=event.finished_trials,
            best=(best[0], best[1]) if best[0] is not None and best[1] is not None else None,
        )
        self._started = self._clock()
        self._time_left = TimeLeft(clock=self._clock)
        metric = f"{event.metric} ({'lower' if event.direction == 'minimize' else 'higher'} is better)"
        self._line(f"study {event.study_name}: {event.n_trials} trials on {event.rows} rows, {metric}")
        self._line(f"stored in {event.storage}")
        if event.baseline:
            self._paragraph(event.baseline)
        if event.split:
            self._paragraph(event.split)
        if event.finished_trials:
            self._line(f"{event.finished_trials} trials are there already; the study goes on after them")
        if self._console.is_terminal:
            from rich.live import Live as RichLive

            self._live = RichLive(
                self._render(), console=self._console, refresh_per_second=4, get_renderable=self._render, transient=True
            )
            self._live.start()

    def _trial_started(self, event: TrialStarted) -> None:
        if self._view is None:
            return
        if event.number == 0:
            self._view.baseline = event.params
        self._view.running[event.number] = RunningTrial(event.number, event.params, event.kind, event.rows)

    def _rows_scored(self, event: RowsScored) -> None:
        if self._view is None or event.number not in self._view.running:
            return
        self._view.running[event.number] = replace(
            self._view.running[event.number],
            rows_done=event.rows_done,
            rows_total=event.rows_total,
            mean=event.mean,
            incumbent_mean=event.incumbent_mean,
        )
        # Without a live view a long trial would look like one that hangs.
        if not self._console.is_terminal and self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES:
            trial = self._view.running[event.number]
            self._line(trial_line(trial, hide=self._view.baseline if trial.number else {}).plain)

    def _trial_ended(self, event: TrialEnded) -> None:
        if self._view is None:
            return
        trial = self._view.running.pop(event.number, RunningTrial(event.number, {}, "", 0))
        self._view.ended += 1
        self._time_left.trial_ended()
        if event.is_best and event.value is not None:
            self._view.best = (event.number, event.value)
            self._view.best_trial = trial
        self._line(self._ended_line(trial, event), style={"pruned": "dim", "failed": "red"}.get(event.state))

    def _ended_line(self, trial: RunningTrial, event: TrialEnded) -> str:
        view = self._view
        assert view is not None
        score = "      -" if event.value is None else f"{event.value:7.4f}"
        words = [
            f"[{view.ended:>{len(str(view.study.n_trials))}}/{view.study.n_trials}]",
            f"trial {event.number:<3}",
            score,
        ]
        words.append(
            {"complete": "best so far" if event.is_best else "", "pruned": "pruned", "failed": "failed"}[event.state]
        )
        if event.state == "pruned" and trial.rows_done:
            words.append(f"after {trial.rows_done} of {trial.rows_total} rows")
        if event.state == "failed" and event.reason:
            words[-1] = f"failed: {event.reason};"
        words += [trial.kind, describe_params(trial.params, hide=view.baseline if event.number else {})]
        words.append(f"({short_time(event.seconds)})")
        if not self._console.is_terminal and (left := self._time_left.seconds(view.remaining)) and view.remaining:
            words.append(f"about {short_time(left)} left")
        return " ".join(word for word in words if word)

    def _work_measured(self, event: WorkMeasured) -> None:
        if self._view is None:
            return
        self._view.work = event
        is_due = self._clock() - self._last_work_line >= _SECONDS_BETWEEN_WORK_LINES
        if is_due and not self._console.is_terminal and (text := describe_work(event)):
            self._line(text)
            self._last_work_line = self._clock()

    def _verdict_started(self, event: VerdictStarted) -> None:
        if self._view is not None:
            self._view.verdict = event
        times = "once" if event.replicates == 1 else f"{event.replicates} times where something is sampled"
        on = "on" if event.stages == 1 else "in"
        who = "both winners" if event.halves else "the winner"
        self._line(f"comparing {who} with the baseline {on} {describe_verdict(event)}, {times}")

    def _study_ended(self, event: StudyEnded) -> None:
        self.close()
        if event.result_summary and self._show_summary:
            self._paragraph(event.result_summary)

    def _paragraph(self, text: str) -> None:
        """Sentences: wrapped in a terminal, where a line of the log would be cut."""
        from rich.text import Text

        self._last_line = self._clock()
        self._console.print(Text(printable(text)), soft_wrap=not self._console.is_terminal)

    def _line(self, text: str, *, style: str | None = None) -> None:
        from rich.text import Text

        self._last_line = self._clock()
        if self._console.is_terminal:
            self._console.print(Text(printable(text), style=style or "", no_wrap=True, overflow="ellipsis"))
        else:
            self._console.print(Text(printable(text)), soft_wrap=True)

    def _render(self) -> RenderableType:
        from rich.console import Group

        if self._view is None:
            return Group()
        left = self._time_left.seconds(self._view.remaining)
        return Group(*self._view.lines(seconds=self._clock() - self._started, seconds_left=left))
