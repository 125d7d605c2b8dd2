"""What the commands print at their end: tables of at most 80 columns, safe for any terminal."""

from __future__ import annotations

import collections
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmsearch_optuna.analysis.status import StudyStatus, read_status
from llmsearch_optuna.progress import (
    describe_params,
    describe_verdict,
    describe_work,
    printable,
    short_time,
    trial_line,
    with_error,
)
from llmsearch_optuna.redaction import redacted
from llmsearch_optuna.storage.trials import half_of, score_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from llmsearch_optuna.analysis.compare import Comparison
    from llmsearch_optuna.optimize.confirm import Confirmation
    from llmsearch_optuna.optimize.score import Score
    from llmsearch_optuna.report import Rescored
    from llmsearch_optuna.search_result import SearchResult
    from llmsearch_optuna.stats.verdict import Verdict

WIDTH = 80
_VERDICT_STYLES = {"better": "bold green", "worse": "bold red"}


def print_outcome(result: SearchResult, *, report: Path, console: Console | None = None) -> None:
    """Print scores, verdict, and where everything is."""
    out = console or wide_enough()
    if not result.has_best:
        out.print(_text(result.summary, "bold red"))
        return
    out.print()
    out.print(_scores(result))
    verdict = result.verdict
    sentence = verdict.headline if verdict is not None else "There is no verdict: no rows were held out."
    style = _VERDICT_STYLES.get(verdict.answer, "bold") if verdict is not None else "bold"
    out.print(_text(sentence, style))
    if verdict is not None:
        out.print(_text(verdict.notes))
    if (advice := result.advice) is not None:
        out.print(_text(advice, "dim"))
    for reason, numbers in result.failures.items():
        out.print(_text(f"failed: trial {', '.join(map(str, numbers))}: {_clipped(reason, 200)}", "red"))
    out.print()
    winner = verdict is not None and verdict.recommends_winner
    out.print(Text("recommended: ").append("the best parameters" if winner else "the baseline", style="bold"))
    out.print(Padding(_text(describe_params(result.recommended_params)), (0, 0, 0, 2)))
    for name, value in result.recommended_task_options.items():
        out.print(Padding(_text(f"{name}: {_clipped(json.dumps(value, ensure_ascii=False), 300)}"), (0, 0, 0, 2)))
    out.print()
    out.print(_places(result, report))


def print_status(result: SearchResult, *, console: Console | None = None) -> None:
    """Print how far a study is."""
    now = _status(result)
    facts = _facts(result, now)
    table = _grid()
    states = ", ".join(f"{count} {state}" for state, count in facts["states"].items())
    table.add_row("study", _text(facts["study"]))
    table.add_row("stored in", _text(facts["storage"]))
    table.add_row("model, data", _text(f"{facts['model']}, {facts['data']}"))
    table.add_row("trials", _text(f"{facts['trials']} of {facts['n_trials']}" + (f" ({states})" if states else "")))
    if now.workers or now.running:
        table.add_row("at work", _text(_at_work(now)))
    for trial in now.running:
        line = trial_line(trial, hide=result.baseline_params)
        line.no_wrap, line.overflow = True, "ellipsis"
        table.add_row("", line)
    for name in ("baseline", "best"):
        if facts[name] is not None:
            score = with_error(facts[name]["score"], facts[name].get("score_error"))
            table.add_row(name, _text(f"{score} {facts['metric']}  (trial {facts[name]['trial']})"))
    if facts["best"] is not None:
        table.add_row("", _text(describe_params(facts["best"]["params"]), "dim"))
    if text := describe_work(now.work):
        table.add_row("work", _text(text))
    under_way = "not yet" if now.stage is None else describe_verdict(now.stage)
    table.add_row("verdict", _text(facts["verdict"] or under_way))
    (console or wide_enough()).print(table)


def _at_work(now: StudyStatus) -> str:
    if not now.workers:
        return "nobody; run the same command again to go on"
    count = "1 process" if now.workers == 1 else f"{now.workers} processes"
    return count if now.seconds_left is None else f"{count}, about {short_time(now.seconds_left)} left"


def status_facts(result: SearchResult) -> dict[str, Any]:
    """What `status` says, as plain data."""
    return _facts(result, _status(result))


def _status(result: SearchResult) -> StudyStatus:
    return read_status(result.opened, int(result.settings.get("n_trials", 0)))


def _facts(result: SearchResult, now: StudyStatus) -> dict[str, Any]:
    states = collections.Counter(t.state.name.lower() for t in result.trials)
    best = _scored(result.best_trial) if result.has_best else None
    errors = {"score_error": result.best_score_error, "expected_score": result.expected_score}
    baseline = result.trials[0] if result.trials else None
    settings = result.settings
    return {
        "study": result.study.study_name,
        "storage": result.opened.url,
        "model": settings.get("model"),
        "data": settings.get("data"),
        "metric": settings.get("metric"),
        "n_trials": settings.get("n_trials"),
        "trials": sum(t.state.is_finished() for t in result.trials),
        "states": {name: states[name] for name in ("complete", "pruned", "fail", "running") if states[name]},
        "baseline": _scored(baseline),
        "best": None if best is None else best | errors,
        "workers": now.workers,
        "seconds_left": now.seconds_left,
        "in_hand": [asdict(trial) for trial in now.running],
        "work": asdict(now.work),
        "stage": None if now.stage is None else asdict(now.stage),
        "verdict": None if result.verdict is None else result.verdict.sentence,
    }


def print_score(found: Score, *, metric: str, completions: int, console: Console | None = None) -> None:
    """Print a score, its parameters, and some completions."""
    out = console or wide_enough()
    table = _grid()
    table.add_row(_text(metric), Text(f"{found.score:.4f}", style="bold"))
    table.add_row("rows", str(len(found.completions)))
    table.add_row("parameters", _text(describe_params(found.params)))
    out.print(table)
    for row in range(min(completions, len(found.completions))):
        score = f"  {found.scores[row]:.4f}" if found.scores else ""
        out.print()
        out.print(Text(f"row {row}{score}", style="bold"))
        out.print(Padding(_text(_clipped(str(found.references[row])), "dim"), (0, 0, 0, 2)))
        completion = found.completions[row]
        if completion.reasoning is not None:
            thought = f"(thought for {completion.reasoning_tokens:,} tokens) {completion.reasoning}"
            out.print(Padding(_text(_clipped(thought), "dim italic"), (0, 0, 0, 2)))
        out.print(Padding(_text(_clipped(completion.text)), (0, 0, 0, 2)))


def print_confirmation(found: Confirmation, *, console: Console | None = None) -> None:
    """Print the study's verdict and that of the engine that will serve, on the same rows."""
    out = console or wide_enough()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "baseline", "winner", "difference"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    table.add_column("interval", overflow="fold")
    for name, verdict in (("study", found.study), (found.engine, found.here)):
        numbers = (verdict.baseline_mean, verdict.winner_mean)
        compared = verdict.difference is not None
        difference = f"{verdict.difference:+.4f}" if compared else "–"
        interval = _interval(verdict) if compared else ""
        table.add_row(_text(name), *map(_number, numbers), difference, interval)
    out.print(table)
    out.print(_text(f"{found.engine}: {found.here.headline}", _VERDICT_STYLES.get(found.here.answer, "bold")))
    out.print(_text(found.here.notes))


def print_comparison(comparison: Comparison, *, console: Console | None = None) -> None:
    """Print each study's score on the common rows, and its difference from the first one's."""
    from llmsearch_optuna.report.compare_page import COMPARED_ON, ROWS_OF, interval

    out = console or wide_enough()
    out.print(_text(f"{COMPARED_ON[comparison.part]}, on {len(comparison.rows)} {ROWS_OF[comparison.part]}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    of_study = {"holdout": "recommended by", "halves": "winners of", "search": "best trial of"}
    table.add_column(of_study[comparison.part], overflow="fold")
    table.add_column(escape(printable(comparison.metric)), justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("interval", overflow="fold")
    table.add_column("won/tied/lost", no_wrap=True)
    for study, pair in zip(comparison.studies, [None, *comparison.pairs], strict=True):
        score = f"{comparison.mean(study):.4f}"
        if pair is None:
            table.add_row(_text(study.name), score, "", "", "")
        else:
            counts = f"{pair.wins}/{pair.ties}/{pair.losses}"
            table.add_row(_text(study.name), score, f"{pair.difference:+.4f}", interval(pair), counts)
    out.print(table)
    if comparison.caution is not None:
        out.print(_text(comparison.caution, "yellow"))


def print_rescored(result: SearchResult, other: Rescored, *, console: Console | None = None) -> None:
    """Print every complete trial by the study's metric and by the other one."""
    metric = str(result.settings.get("metric", "score"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    for name in (f"{metric},\nsearch rows", f"{other.metric},\nsearch rows", f"{other.metric},\nholdout"):
        table.add_column(escape("\n".join(map(printable, name.split("\n")))), justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for number in sorted(other.search):
        trial = result.trials[number]
        role = "best" if number == result.best_trial.number else str(trial.user_attrs.get("role", ""))
        values = (score_of(trial), other.search[number], other.holdout.get(number))
        table.add_row(str(number), *map(_number, values), _text("" if role == "searched" else role, "dim"))
    (console or wide_enough()).print(table)


def _scores(result: SearchResult) -> Table:
    verdict = result.verdict
    metric = str(result.settings.get("metric", "score"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("")
    half = half_of(result.best_trial)
    searched = "search rows" if half is None else "half of the rows"
    judged = "both winners,\nunseen rows" if result.halves else "\nholdout"
    table.add_column(f"{escape(printable(metric))},\n{searched}", no_wrap=True)
    table.add_column(judged, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    best = result.best_trial
    baseline = result.trials[0]
    greedy = next((t for t in result.trials if t.user_attrs.get("role") == "greedy"), None)
    held = {"baseline": verdict.baseline_mean, "best": verdict.winner_mean} if verdict is not None else {}
    rows: list[tuple[str, FrozenTrial | None, Mapping[str, Any]]] = [
        ("baseline", baseline, result.settings.get("model_defaults", {})),
        ("greedy", greedy, result.baseline_params),
        ("best", best, result.baseline_params),
    ]
    shown = [(name, trial, hidden) for name, trial, hidden in rows if trial is not None]
    # Padded here, for an error behind one of them must not move its digits away from under the others'.
    width = max(len(_number(result.score_on(trial, half))) for _, trial, _ in shown)
    error = "" if result.best_score_error is None else f" ± {result.best_score_error:.4f}"
    for name, trial, hidden in shown:
        kind = str(trial.user_attrs.get("kind", ""))
        params = f"{kind} {describe_params(trial.user_attrs.get('params', {}), hide=hidden)}"
        cut = trial.user_attrs.get("cut_by_length", "0%")
        if cut != "0%":
            params += f" ({cut} of the rows cut by length)"
        number = _text(f"{name} (trial {trial.number})", "bold" if name == "best" else "")
        score = f"{_number(result.score_on(trial, half)):>{width}}{error if name == 'best' else ''}"
        table.add_row(number, score, _number(held.get(name)), _text(params, "dim"))
    if verdict is not None and verdict.difference is not None:
        table.add_row("difference", "", f"{verdict.difference:+.4f}", _interval(verdict))
    return table


def _interval(verdict: Verdict) -> str:
    low, high = ("no limit" if end is None else f"{end:+.4f}" for end in (verdict.low, verdict.high))
    return f"{low} to {high} ({verdict.confidence:.0%})"


def _places(result: SearchResult, report: Path) -> Group:
    database = result.opened.path
    study = str(database) if database is not None else result.opened.url
    table = _grid()
    table.add_row("study", _text(study))
    table.add_row("report", _text(str(report)))
    table.add_row("dashboard", _text(f"llmsearch-optuna dashboard {shlex.quote(study)}"))
    for row in table.columns[1:]:
        row.overflow = "fold"
    return Group(table)


def _scored(trial: FrozenTrial | None) -> dict[str, Any] | None:
    if trial is None or (score := score_of(trial)) is None:
        return None
    return {"trial": trial.number, "score": score, "params": trial.user_attrs.get("params", {})}


def wide_enough(*, stderr: bool = False) -> Console:
    """A console of at most 80 columns."""
    console = Console(highlight=False, stderr=stderr)
    # A pipe has no width; a terminal may be narrower than our tables.
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _text(text: str, style: str = "") -> Text:
    return Text("\n".join(printable(line) for line in redacted(text).splitlines()), style=style)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _clipped(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + " …"
