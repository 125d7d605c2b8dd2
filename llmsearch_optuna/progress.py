"""What a study says while it runs, and who listens.

The search tells an `Observer` one frozen event at a time; it never prints. `Terminal` shows them to a person,
`Quiet` drops them. Events carry plain data only: no study, no model, no text from a model.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SECONDS_BETWEEN_LINES = 30.0
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A trial's requests were queued; `kind` is its kind of decoding (greedy, sampling, beam …)."""

    number: int
    params: Mapping[str, Any]
    kind: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsScored:
    """A look: the running mean after `rows_done` rows, and the incumbent's mean over the same rows."""

    number: int
    rows_done: int
    rows_total: int
    mean: float
    incumbent_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyForecast:
    """What the study will take, seen from its first rows: a line or two for people."""

    text: str


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
    """The winner is stored; it and the baseline are decoded on the holdout (`rows` rows, `replicates` times)."""

    rows: int
    replicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEnded:
    """Nothing more will be decoded; the summary is one or two sentences for people."""

    result_summary: str = ""


Event: TypeAlias = StudyStarted | StudyForecast | TrialStarted | RowsScored | TrialEnded | VerdictStarted | StudyEnded


class Observer(Protocol):
    """Whoever wants to follow a study. An observer may raise KeyboardInterrupt to end it, nothing else."""

    def on(self, event: Event) -> None:
        """Take note of one event; called from the thread of the search, so be quick."""
        ...


class Quiet:
    """Shows nothing."""

    def on(self, event: Event) -> None:
        """Drop the event."""


class TimeLeft:
    """Estimates how long the remaining trials take from how long the latest ones took.

    Only the latest trials count: the first ones run in full, later ones are pruned and reuse what others computed.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, window: int = 12) -> None:
        self._clock = clock
        self._ends: deque[float] = deque([clock()], maxlen=window + 1)

    def trial_ended(self) -> None:
        """Note that a trial ended now."""
        self._ends.append(self._clock())

    def seconds(self, remaining: float) -> float | None:
        """Seconds that `remaining` trials will take (parts of trials count); None before the first one ended."""
        if len(self._ends) < 2:
            return None
        per_trial = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return max(0.0, per_trial * remaining - (self._clock() - self._ends[-1]))


@dataclass(frozen=True, slots=True)
class _InHand:
    number: int
    params: Mapping[str, Any]
    kind: str
    rows_total: int
    rows_done: int = 0
    mean: float | None = None
    incumbent_mean: float | None = None


@dataclass(slots=True)
class _View:
    """What is known of the study at the moment; everything that the terminal shows is made from it."""

    study: StudyStarted
    ended: int
    best: tuple[int, float] | None
    best_trial: _InHand | None = None
    baseline: Mapping[str, Any] = field(default_factory=dict)
    in_hand: dict[int, _InHand] = field(default_factory=dict)
    verdict: VerdictStarted | None = None

    @property
    def remaining(self) -> float:
        """Trials that are left; a trial in hand counts by the rows it still has to do."""
        done = sum(t.rows_done / t.rows_total for t in self.in_hand.values() if t.rows_total)
        return max(0.0, self.study.n_trials - self.ended - done)


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
        self._view: _View | None = None
        self._live: Live | None = None
        self._last_line = clock()

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
            case TrialStarted():
                self._trial_started(event)
            case RowsScored():
                self._rows_scored(event)
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
        self._view = _View(
            study=event,
            ended=event.finished_trials,
            best=(best[0], best[1]) if best[0] is not None and best[1] is not None else None,
        )
        self._started = self._clock()
        self._time_left = TimeLeft(clock=self._clock)
        metric = f"{event.metric} ({'lower' if event.direction == 'minimize' else 'higher'} is better)"
        self._line(f"study {event.study_name}: {event.n_trials} trials on {event.rows} rows, {metric}")
        self._line(f"stored in {event.storage}")
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
        self._view.in_hand[event.number] = _InHand(event.number, event.params, event.kind, event.rows)

    def _rows_scored(self, event: RowsScored) -> None:
        if self._view is None or event.number not in self._view.in_hand:
            return
        self._view.in_hand[event.number] = replace(
            self._view.in_hand[event.number],
            rows_done=event.rows_done,
            rows_total=event.rows_total,
            mean=event.mean,
            incumbent_mean=event.incumbent_mean,
        )
        # Without a live view a long trial would look like one that hangs.
        if not self._console.is_terminal and self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line(_trial_line(self._view.in_hand[event.number], self._view.baseline).plain)

    def _trial_ended(self, event: TrialEnded) -> None:
        if self._view is None:
            return
        trial = self._view.in_hand.pop(event.number, _InHand(event.number, {}, "", 0))
        self._view.ended += 1
        self._time_left.trial_ended()
        if event.is_best and event.value is not None:
            self._view.best = (event.number, event.value)
            self._view.best_trial = trial
        self._line(self._ended_line(trial, event), style={"pruned": "dim", "failed": "red"}.get(event.state))

    def _ended_line(self, trial: _InHand, event: TrialEnded) -> str:
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

    def _verdict_started(self, event: VerdictStarted) -> None:
        if self._view is not None:
            self._view.verdict = event
        times = "once" if event.replicates == 1 else f"{event.replicates} times"
        self._line(f"comparing the winner with the baseline on {event.rows} rows that no trial has seen, {times}")

    def _study_ended(self, event: StudyEnded) -> None:
        self.close()
        if event.result_summary and self._show_summary:
            self._line(event.result_summary)

    def _line(self, text: str, *, style: str | None = None) -> None:
        from rich.text import Text

        self._last_line = self._clock()
        if self._console.is_terminal:
            self._console.print(Text(printable(text), style=style or "", no_wrap=True, overflow="ellipsis"))
        else:
            self._console.print(Text(printable(text)), soft_wrap=True)

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        view = self._view
        if view is None:
            return Text("")
        lines = [self._study_line(view)]
        for trial in sorted(view.in_hand.values(), key=lambda t: t.number)[:4]:
            lines.append(_trial_line(trial, view.baseline))
        if view.best is not None:
            lines.append(_best_line(view))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _study_line(self, view: _View) -> Any:
        from rich.text import Text

        total = max(1, view.study.n_trials)
        width = 24
        filled = round(width * (total - view.remaining) / total)
        line = Text()
        line.append("━" * filled, style="cyan").append("━" * (width - filled), style="bright_black")
        line.append(f"  {view.ended}/{view.study.n_trials} trials", style="bold")
        line.append(f"   {short_time(self._clock() - self._started)} so far")
        if view.verdict is not None:
            line.append("   deciding on the holdout")
        elif (left := self._time_left.seconds(view.remaining)) is not None:
            line.append(f"   about {short_time(left)} left")
        return line


def _trial_line(trial: _InHand, baseline: Mapping[str, Any]) -> Any:
    from rich.text import Text

    line = Text().append(f"trial {trial.number}", style="bold").append(f"  {trial.rows_done}/{trial.rows_total} rows")
    if trial.mean is not None:
        line.append(f"  {trial.mean:.4f}", style="cyan")
    if trial.incumbent_mean is not None:
        line.append(f" (incumbent {trial.incumbent_mean:.4f})")
    return line.append(
        f"  {trial.kind} {describe_params(trial.params, hide=baseline if trial.number else {})}", style="dim"
    )


def _best_line(view: _View) -> Any:
    from rich.text import Text

    assert view.best is not None
    number, value = view.best
    line = Text().append("best", style="bold green").append(f"  trial {number}").append(f"  {value:.4f}", style="green")
    if view.best_trial is not None:
        hide = view.baseline if number else {}
        line.append(f"  {view.best_trial.kind} {describe_params(view.best_trial.params, hide=hide)}", style="dim")
    return line


def describe_params(params: Mapping[str, Any], *, hide: Mapping[str, Any] | None = None) -> str:
    """``temperature=0.7 top_p=0.9``: parameters in one line, without those that have the value they have in `hide`.

    Special tokens are shown only where `hide` has others: they belong to the model and say nothing about a choice.
    """
    hidden = {name: params[name] for name in _SPECIAL_TOKENS if name in params} | dict(hide or {})
    shown = {n: value for n, value in params.items() if n not in hidden or hidden[n] not in (value, _only(value))}
    return " ".join(f"{name}={_short_value(value)}" for name, value in shown.items())


def _only(value: Any) -> Any:
    """A list of one and its element say the same: ``eos_token_id=[2]`` and ``2``."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def short_time(seconds: float) -> str:
    """``8 s``, ``4 min``, ``1 h 20 min``: a duration as people say it."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    """The text with control characters shown as escapes, so that no text can drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, int) else str(value)
    return f"{value:.4g}"
