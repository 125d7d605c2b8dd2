"""What is known of a running study, and the lines in which a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.progress.events import StudyStarted, VerdictStarted, WorkMeasured
from llmsearch_optuna.progress.format import describe_params, describe_work, short_time
from llmsearch_optuna.progress.time_left import trials_left

if TYPE_CHECKING:
    from rich.text import Text

MOST_SHOWN = 4
"""Running trials that the live view shows; more would make it jump."""
_BAR = 24


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """A running trial: how far it is, its running mean, and the incumbent's over the same rows."""

    number: int
    params: Mapping[str, Any]
    kind: str
    rows_total: int
    rows_done: int = 0
    mean: float | None = None
    incumbent_mean: float | None = None


@dataclass(slots=True)
class View:
    """What is known of the study at the moment; everything that the live view shows is made from it.

    Attributes:
        study: How it began.
        ended: Trials that have ended, in all sessions.
        best: The best complete trial's number and score.
        best_trial: The same trial, where it was run in this session.
        baseline: Parameters that are not repeated on every line.
        running: Running trials, by number.
        work: How the work goes; None until that is measured.
        verdict: Set once the winner is being compared with the baseline.
    """

    study: StudyStarted
    ended: int
    best: tuple[int, float] | None
    best_trial: RunningTrial | None = None
    baseline: Mapping[str, Any] = field(default_factory=dict)
    running: dict[int, RunningTrial] = field(default_factory=dict)
    work: WorkMeasured | None = None
    verdict: VerdictStarted | None = None

    @property
    def remaining(self) -> float:
        """Trials that are left; a running trial counts by the rows it still has to do."""
        shares_done = (t.rows_done / t.rows_total for t in self.running.values() if t.rows_total)
        return trials_left(self.study.n_trials, self.ended, shares_done)

    def lines(self, *, seconds: float, seconds_left: float | None) -> list[Text]:
        """The study, the first few running trials, the best one so far, and how the work goes; a line each."""
        found = [self._study_line(seconds, seconds_left)]
        for trial in sorted(self.running.values(), key=lambda t: t.number)[:MOST_SHOWN]:
            found.append(trial_line(trial, hide=self.baseline if trial.number else {}))
        if self.best is not None:
            found.append(self._best_line(*self.best))
        # What was measured is the search's; while the verdict is made it would only stand still.
        if self.verdict is None and self.work is not None and (text := describe_work(self.work)):
            found.append(_text(text, "dim"))
        for line in found:
            line.no_wrap, line.overflow = True, "ellipsis"
        return found

    def _study_line(self, seconds: float, seconds_left: float | None) -> Text:
        total = max(1, self.study.n_trials)
        filled = round(_BAR * (total - self.remaining) / total)
        line = _text("━" * filled, "cyan").append("━" * (_BAR - filled), style="bright_black")
        line.append(f"  {self.ended}/{self.study.n_trials} trials", style="bold")
        line.append(f"   {short_time(seconds)} so far")
        if self.verdict is not None:
            line.append("   the halves judge each other" if self.verdict.halves else "   deciding on the holdout")
            if self.verdict.stages > 1:
                line.append(f", stage {self.verdict.stage} of {self.verdict.stages}")
        elif seconds_left is not None and self.remaining:
            line.append(f"   about {short_time(seconds_left)} left")
        return line

    def _best_line(self, number: int, value: float) -> Text:
        line = _text("best", "bold green").append(f"  trial {number}").append(f"  {value:.4f}", style="green")
        if self.best_trial is not None:
            hidden = self.baseline if number else {}
            line.append(f"  {self.best_trial.kind} {describe_params(self.best_trial.params, hide=hidden)}", style="dim")
        return line


def trial_line(trial: RunningTrial, *, hide: Mapping[str, Any]) -> Text:
    """``trial 7  16/42 rows  0.2211 (incumbent 0.2310)  sampling temperature=0.7``.

    Args:
        trial: The trial.
        hide: Parameters that are not repeated.
    """
    line = _text(f"trial {trial.number}", "bold").append(f"  {trial.rows_done}/{trial.rows_total} rows")
    if trial.mean is not None:
        line.append(f"  {trial.mean:.4f}", style="cyan")
    if trial.incumbent_mean is not None:
        line.append(f" (incumbent {trial.incumbent_mean:.4f})")
    return line.append(f"  {trial.kind} {describe_params(trial.params, hide=hide)}", style="dim")


def _text(text: str, style: str) -> Text:
    from rich.text import Text as RichText  # rich is slow to import, and a quiet search needs none of it

    return RichText().append(text, style=style)
