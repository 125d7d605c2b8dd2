"""One self-contained HTML page of a study: works offline, light and dark, on a desk and on a phone.

Every text that came from a model, a dataset or a user passes `words.safe` on its way in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from llmsearch_optuna.optimize.objectives import TOKENS_LABEL
from llmsearch_optuna.progress import with_error
from llmsearch_optuna.report.collect import collect
from llmsearch_optuna.report.data import Example, Holdout, ReportData, Rescored, TrialPoint
from llmsearch_optuna.report.figures import FIGURES, drawable
from llmsearch_optuna.report.html_text import clip_tail, marked_words, safe
from llmsearch_optuna.report.style import CSS, SCRIPT
from llmsearch_optuna.storage.whole_file import write_whole

if TYPE_CHECKING:
    from llmsearch_optuna.analysis.view import StudyView

MAX_EXAMPLES = 200
PROMPT_TAIL = 1200
# The page may run its own script and nothing else; it may ask no server for anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def render(data: ReportData) -> str:
    """The whole page; about 5 MB, nearly all of it plotly.js."""
    shown = drawable(data)
    figures = {name: json.loads(FIGURES[name](data).to_json()) for name in shown}
    sections = [
        _top(data),
        _holdout(data),
        _search(data, shown),
        _front(data, shown),
        _parameters(data, shown),
        _costs(data, shown),
        _examples(data),
        _trials(data),
        _rescored(data),
        _reproduce(data),
    ]
    return document(f"{data.study_name}: report", sections, figures)


def document(title: str, sections: Iterable[str], figures: Mapping[str, Any]) -> str:
    """A self-contained page.

    Args:
        title: Any text.
        sections: HTML, safe already; empty ones are left out.
        figures: Plotly's JSON by name; each is drawn into the element with the id ``figure-<name>``.
    """
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{safe(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<style>{CSS}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + f'\n</main><script type="application/json" id="figures">{script_json(figures)}</script>'
        f"<script>{get_plotlyjs()}</script><script>{SCRIPT}</script></body></html>\n"
    )


def summary(data: ReportData) -> str:
    """A short form for notebooks: verdict, numbers and recommended parameters; no script, its own small styles."""
    rows = "".join(
        f"<tr><td>{safe(label)}</td><td><b>{safe(value)}</b></td></tr>" for label, value, _ in _numbers(data)
    )
    return (
        f"<div><p><b>{safe(data.verdict_sentence)}</b></p><table>{rows}</table><p>{safe(data.verdict_notes)}</p>"
        f"<p>Recommended: <code>{safe(_one_line(data.recommended_params))}</code></p></div>"
    )


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _top(data: ReportData) -> str:
    kicker = " · ".join(safe(part) for part in (data.study_name, data.model, data.dataset) if part)
    tiles = "".join(
        f'<div class="tile"><span>{safe(label)}</span><b>{safe(value)}</b><span>{safe(note)}</span></div>'
        for label, value, note in _numbers(data)
    )
    origin = "the best parameters of the search" if data.recommends_best else "the baseline"
    return (
        f'<header><div class="kicker">{kicker}</div>'
        f'<p><span class="badge {_colour(data)}">{safe(data.verdict)}</span></p>'
        f"<h1>{safe(data.verdict_sentence)}</h1><p>{safe(data.verdict_notes)}</p></header>"
        f'<div class="tiles">{tiles}</div>{_what_numbers_can_show(data)}'
        f'<p class="soft">Recommended: {origin}.</p>{_json_block(data.recommended_params)}{_task_options(data)}'
    )


def _task_options(data: ReportData) -> str:
    """What the recommended labels of prompts and the like stand for."""
    if not data.recommended_task_options:
        return ""
    return f'<p class="soft">With this of the task:</p>{_json_block(data.recommended_task_options)}'


def _what_numbers_can_show(data: ReportData) -> str:
    """What is compared on which rows, how small a difference these can show, and what would sharpen the score."""
    power = None if data.power is None else f"Judged by the baseline's scores: {data.power}"
    told = (data.baseline_note, data.split_note, power, data.advice)
    return "".join(f'<p class="soft">{safe(text)}</p>' for text in told if text)


def _numbers(data: ReportData) -> list[tuple[str, str, str]]:
    """(label, value, note) of the outcome, holdout first."""
    if data.holdout is not None:
        held = data.holdout
        wins, ties, losses = held.outcomes(minimize=data.minimize)
        who, rows = ("winners", "unseen rows") if data.halves else ("best", "holdout")
        numbers = [
            (f"baseline, {rows}", f"{held.baseline_mean:.4f}", data.metric),
            (f"{who}, {rows}", f"{held.best_mean:.4f}", data.metric),
            ("difference", f"{held.difference:+.4f}", _interval(held)),
        ]
        if held.differences:
            numbers.append(("rows won / tied / lost", f"{wins} / {ties} / {losses}", f"{len(held.differences)} rows"))
        return numbers
    baseline, best = data.trial_of("baseline"), data.best
    numbers = []
    if baseline is not None and baseline.value is not None:
        numbers.append(("baseline, search rows", f"{baseline.value:.4f}", data.metric))
    if best is not None and best.value is not None:
        numbers.append(("best, search rows", with_error(best.value, data.best_score_error), data.metric))
    return numbers


def _interval(held: Holdout) -> str:
    low, high = ("no limit" if end is None else f"{end:+.4f}" for end in (held.low, held.high))
    below = held.p_value is not None and held.p_value < 0.001
    p_value = "" if held.p_value is None else ", p < 0.001" if below else f", p = {held.p_value:.3f}"
    return f"{held.confidence:.0%} interval {low} to {high}{p_value}"


def _holdout(data: ReportData) -> str:
    if data.holdout is None or not data.holdout.differences:
        return ""
    against = "the winners of two halves, each on rows that it was not chosen on"
    return (
        f"<h2>Baseline against {against if data.halves else 'best, on rows that no trial saw'}</h2>"
        f"<p>{safe(data.holdout.decoded)} Differences are taken row by row.</p>"
        + _figure("holdout_differences", "One bar a row: best minus baseline. The band is the interval of their mean.")
    )


def _search(data: ReportData, shown: list[str]) -> str:
    parts = {
        "history": "Every trial by its mean score. Pruned trials stand where they were stopped, on fewer rows, so "
        "their scores are less sure. The winner is not always the highest point: the best few trials are decoded again "
        "with fresh noise before one is chosen.",
        "learning_curves": "The running mean over the same rows in the same order, so the curves can be compared at "
        "any number of rows. A cross marks where a trial was stopped.",
        "rows_done": "How many rows each trial was given.",
    }
    figures = "".join(_figure(name, text) for name, text in parts.items() if name in shown)
    apart = (
        '<p class="soft">Trials take turns on two halves of the rows: scores of different halves are of different '
        "rows, and only the baseline and what was tried first did all.</p>"
    )
    return f"<h2>The search</h2>{_won_with(data)}{apart if data.halves else ''}{figures}"


def _won_with(data: ReportData) -> str:
    """The winner's score on the rows that it won on, never without its error."""
    best = data.best
    if best is None or best.value is None or data.best_score_error is None:
        return ""
    return (
        f"<p>Trial {best.number} scored {with_error(best.value, data.best_score_error)} on the search rows. "
        "The error is that of its mean on fresh replicates, rows included; it is the best of many on these rows, so "
        "expect less.</p>"
    )


def _front(data: ReportData, shown: list[str]) -> str:
    if not data.front:
        return ""
    others = data.objectives or (TOKENS_LABEL,)
    body = "".join(
        f'<tr><td class="number" data-label="trial">{t.number}</td>'
        f'<td class="number" data-label="{safe(data.metric)}">{t.value or 0:.4f}</td>'
        + "".join(f'<td class="number" data-label="{safe(name)}">{_objective(t, name)}</td>' for name in others)
        + f'<td data-label="decoding">{safe(t.kind)}</td>'
        f'<td data-label="parameters">{safe(_one_line(t.params))}</td></tr>'
        for t in data.front_points
    )
    better = "lower" if data.minimize else "higher"
    caption = (
        "Complete trials by the tokens they generate for one row. The line is the front: no trial with so few tokens "
        f"scores {better}."
    )
    is_about_tokens = others == (TOKENS_LABEL,)
    title = "What a better score costs" if is_about_tokens else "The front of all objectives"
    has_figure = is_about_tokens and "score_against_tokens" in shown
    return (
        f"<h2>{title}</h2>{_figure('score_against_tokens', caption) if has_figure else ''}"
        '<div class="scroll"><table class="cards"><thead><tr><th class="number">trial</th>'
        f'<th class="number">{safe(data.metric)}</th>'
        + "".join(f'<th class="number">{safe(name)}</th>' for name in others)
        + f"<th>decoding</th><th>searched parameters</th></tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="soft">Scores are those of the search rows, which flatter whatever was chosen on them. The verdict '
        "is about the best score alone; no other point of the front was tried on the holdout.</p>"
    )


def _objective(trial: TrialPoint, name: str) -> str:
    value = trial.objectives.get(name)
    if name == TOKENS_LABEL:
        return f"{trial.tokens or 0:.1f}"
    return _score(value)


def _parameters(data: ReportData, shown: list[str]) -> str:
    parts = {
        "importances": "How much of the score's variation goes with each parameter. A parameter that only some "
        "trials have is measured among these. With few trials this is a hint, not a finding.",
        "slices": "The score against the most important parameters, one at a time.",
        "contour": "Complete trials in the plane of two parameters, the best one as a star. Shading, where "
        "there is any, only interpolates between them.",
    }
    figures = "".join(_figure(name, text) for name, text in parts.items() if name in shown)
    return f"<h2>What mattered</h2>{figures}" if figures else ""


def _costs(data: ReportData, shown: list[str]) -> str:
    rows = "".join(f"<tr><td>{safe(label)}</td><td>{safe(value)}</td></tr>" for label, value in data.costs)
    table = f'<table class="facts">{rows}</table>' if rows else ""
    figure = ""
    if "score_against_tokens" in shown and (not data.front or data.objectives not in ((), (TOKENS_LABEL,))):
        figure = _figure("score_against_tokens", "Complete trials by the tokens they generate for one row.")
    return f"<h2>What it cost</h2>{table}{figure}" if table or figure else ""


def _examples(data: ReportData) -> str:
    if not data.examples:
        return ""
    sign = -1 if data.minimize else 1
    ordered = sorted(data.examples, key=lambda example: -sign * example.difference)
    note = ""
    if len(ordered) > MAX_EXAMPLES:
        half = MAX_EXAMPLES // 2
        note = f" Of {len(ordered)} rows the {half} with the largest gains and the {half} with the largest losses."
        ordered = ordered[:half] + ordered[-half:]
    body = "".join(_example_row(example, data) for example in ordered)
    return (
        "<h2>Completions, defaults against best</h2>"
        f'<p class="soft">From {safe(data.examples_from)}, largest gain first, largest loss last.{note} '
        "<del>Words</del> that only the defaults wrote and <ins>words</ins> that only the best parameters wrote are "
        "marked.</p>"
        '<table class="texts"><colgroup><col class="delta"><col><col><col></colgroup><thead><tr>'
        '<th class="number">difference</th><th>asked</th><th>defaults</th><th>best</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _example_row(example: Example, data: ReportData) -> str:
    before, after = marked_words(example.baseline_text, example.best_text)
    sign = -1 if data.minimize else 1
    colour = "better" if sign * example.difference > 1e-9 else "worse" if sign * example.difference < -1e-9 else "soft"
    prompts = {"prompt": example.prompt}
    if example.baseline_prompt is not None:
        prompts = {"prompt of the defaults": example.baseline_prompt, "prompt of the best": example.prompt}
    asked = "".join(
        f'<details><summary>{name}</summary><div class="text" dir="auto">{safe(clip_tail(text, PROMPT_TAIL))}</div>'
        "</details>"
        for name, text in prompts.items()
    )
    reference = f'<span class="score">reference</span><div class="text" dir="auto">{safe(example.reference)}</div>'
    return (
        f'<tr><td class="number"><b class="{colour}">{example.difference:+.3f}</b>'
        f'<span class="score">row {example.row}</span></td>'
        f"<td>{reference}{asked}</td>"
        f'<td data-label="defaults">{_score(example.baseline_score)}{_reasoning(example.baseline_reasoning)}'
        f'<div class="text" dir="auto">{before}</div>{_samples(example.baseline_votes, example.baseline_samples)}</td>'
        f'<td data-label="best">{_score(example.best_score)}{_reasoning(example.best_reasoning)}'
        f'<div class="text" dir="auto">{after}</div>{_samples(example.best_votes, example.best_samples)}</td></tr>'
    )


def _reasoning(text: str | None) -> str:
    """What was thought before the answer, folded; empty where nothing was."""
    if not text:
        return ""
    return f'<details><summary>reasoning</summary><div class="text" dir="auto">{safe(text)}</div></details>'


def _samples(votes: str, texts: Sequence[str]) -> str:
    """All samples of a row, folded under how they voted; empty where there is one."""
    if not texts:
        return ""
    listed = "".join(f'<div class="text" dir="auto">{safe(text)}</div>' for text in texts)
    return f"<details><summary>{safe(votes)}</summary>{listed}</details>"


def _trials(data: ReportData) -> str:
    names = _means(data)
    means = [(safe(name), ' class="number"') for name in names]
    head = "".join(f"<th{c}>{h}</th>" for h, c in (("trial", ' class="number"'), ("ended", ""), (
        safe(data.metric), ' class="number"'), *means, ("rows", ' class="number"'),
        ("cut by length", ' class="number"'), ("seconds", ' class="number"'),
        ("decoding", ""), ("searched parameters", "")))  # fmt: skip
    body = "".join(_trial_row(trial, data, names) for trial in data.trials)
    return (
        f"<h2>Trials</h2>{_failures(data)}<details><summary>all {len(data.trials)} trials</summary>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _rescored(data: ReportData) -> str:
    """The complete trials by the study's metric and by others."""
    if not data.rescored:
        return ""
    names = [data.metric] + [f"{other.metric}{part}" for other in data.rescored for part in ("", ", holdout")]
    head = "".join(f'<th class="number">{safe(name)}</th>' for name in names)
    body = ""
    for trial in data.complete:
        values = [trial.value] + [part.get(trial.number) for o in data.rescored for part in (o.search, o.holdout)]
        cells = "".join(f'<td class="number">{"–" if v is None else f"{v:.4f}"}</td>' for v in values)
        role = "best" if trial.number == data.best_number else trial.role
        body += f'<tr><td class="number">{trial.number}</td><td>{safe(role)}</td>{cells}</tr>'
    return (
        "<h2>The same completions by other metrics</h2><p>Nothing was searched for these: a trial that is good here "
        "was not chosen for it, and the verdict is about the study's metric.</p>"
        f"<div class='scroll'><table><thead><tr><th class=\"number\">trial</th><th></th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _failures(data: ReportData) -> str:
    rows = "".join(
        f"<li>{'Trials' if len(numbers) > 1 else 'Trial'} {', '.join(map(str, numbers))} failed: {safe(reason)}</li>"
        for reason, numbers in data.failures.items()
    )
    return f"<ul>{rows}</ul>" if rows else ""


def _means(data: ReportData) -> list[str]:
    """The names of parts and conditions that some trial has a mean of."""
    return list(dict.fromkeys(name for trial in data.trials for name in trial.means))


def _trial_row(trial: TrialPoint, data: ReportData, means: Sequence[str]) -> str:
    value = "–" if trial.value is None else f"{trial.value:.4f}"
    role = "best" if trial.number == data.best_number else trial.role
    cells = "".join(f'<td class="number">{_score(trial.means.get(name))}</td>' for name in means)
    cut = "–" if trial.cut is None else f"{trial.cut:.0%}"
    state = trial.state + (f", {role}" if role else "") + (f": {trial.reason}" if trial.reason else "")
    return (
        f'<tr><td class="number">{trial.number}</td><td>{safe(state)}</td><td class="number">{value}</td>{cells}'
        f'<td class="number">{trial.rows}</td><td class="number">{cut}</td>'
        f'<td class="number">{trial.seconds:.1f}</td><td>{safe(trial.kind)}</td>'
        f"<td>{safe(_one_line(trial.params))}</td></tr>"
    )


def _reproduce(data: ReportData) -> str:
    facts = [("storage", data.storage), ("fingerprint", data.fingerprint), *data.versions.items()]
    rows = "".join(f"<tr><td>{safe(k)}</td><td><code>{safe(v)}</code></td></tr>" for k, v in facts if v)
    study_file = f"<h3>Study file</h3><pre><code>{safe(data.study_file)}</code></pre>" if data.study_file else ""
    return (
        "<h2>How to reproduce</h2>"
        "<p>The same study file, data and versions give the same trials, in the same order.</p>"
        f'<table class="facts">{rows}</table>'
        '<div class="pair"><div><h3>Baseline parameters</h3>'
        f"{_json_block(data.baseline_params)}</div>"
        f"<div><h3>Best parameters</h3>{_json_block(data.best_params)}</div></div>"
        f"{study_file}"
    )


def _figure(name: str, caption: str) -> str:
    return f'<figure><div class="plot" id="figure-{name}"></div><figcaption>{caption}</figcaption></figure>'


def _score(score: float | None) -> str:
    return f'<span class="score">{"no score" if score is None else f"{score:.3f}"}</span>'


def _colour(data: ReportData) -> str:
    return "better" if data.recommends_best else "worse" if data.verdict == "worse" else "none"


def _json_block(params: Mapping[str, Any]) -> str:
    text = json.dumps(dict(params), indent=2, ensure_ascii=False, default=str)
    return f"<pre><code>{safe(text)}</code></pre>"


def _one_line(params: Mapping[str, Any]) -> str:
    items: Iterable[str] = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())
    return ", ".join(items)


def write_report(result: StudyView, path: str | Path, others: Sequence[Rescored] = ()) -> Path:
    """Write the page of a result and return its path.

    Args:
        result: The result.
        path: Where to; folders are made.
        others: The same completions by other metrics; see `rescored`.

    Raises:
        InputError: The file cannot be written.
    """
    return write_whole(path, render(replace(collect(result), rescored=tuple(others))), "the report")
