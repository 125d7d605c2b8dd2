"""What stands in the notes of a study and of its trials: Markdown from plain values, nothing is written here.

The dashboard's Markdown knows tables, links and HTML, and texts of models and datasets hold all of them. What stands
in a line or a cell is escaped; whole texts stand in code blocks that they cannot leave.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.report.data import ReportData

STUDY_HEADING = "#### Outcome"
"""The first line of a study's note; a note without it is a user's own."""

SHOWN_ROWS = 3
_PROMPT_TAIL, _TEXT_SHOWN = 200, 300
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!~<>&$])")
_LINKS = re.compile(r"((?:https?|ftp|mailto|xmpp)(?=:)|www(?=\.)|@)", re.IGNORECASE)
_JOINER = "\u2060"


@dataclass(frozen=True, slots=True)
class NotedRow:
    """One row as a note shows it; all texts are raw."""

    row: int
    prompt: str
    completion: str
    reference: str
    score: float | None


def study_note(data: ReportData) -> str:
    """The study in a few lines: verdict, model, data, winner, fingerprint, recommended parameters, a prompt."""
    facts = {
        "model": data.model,
        "data": f"{data.dataset}, {data.rows} search rows",
        "trials": _states(data),
        "winner": _winner(data),
        "metric": f"{data.metric}, {'lower' if data.minimize else 'higher'} is better",
        "fingerprint": data.fingerprint,
    }
    lines = [STUDY_HEADING, "", f"**{inline(data.verdict_sentence)}**", ""]
    lines += [inline(data.verdict_notes), ""] if data.verdict_notes else []
    lines += [f"- {name}: {inline(value)}" for name, value in facts.items() if value]
    if data.recommended_params:
        lines += ["", "Recommended parameters:", "", fenced(_json(data.recommended_params))]
    if data.recommended_task_options:
        lines += ["", "With this of the task:", "", fenced(_json(data.recommended_task_options))]
    if data.first_prompt:
        lines += ["", "The first prompt:", "", fenced(_visible(_tail(data.first_prompt, 600)))]
    return "\n".join(lines)


def trial_note(headline: str, rows: Sequence[NotedRow], *, minimize: bool = False) -> str:
    """How a trial ended, and its best and worst rows with prompt, completion, reference and score.

    Args:
        headline: How it ended.
        rows: The rows that count; those without a score (of a corpus metric) keep their order.
        minimize: Whether a lower score is better.
    """
    lines = [f"**{inline(headline)}**"]
    for title, shown in _best_and_worst(rows, minimize=minimize):
        lines += ["", f"##### {title}", "", *_table(shown)]
    return "\n".join(lines)


def fenced(text: str) -> str:
    """The text as a Markdown code block that it cannot leave: the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def inline(text: str) -> str:
    """Markdown and HTML in a text that stands in a line or a cell are shown, not obeyed; links lead nowhere."""
    marked = _MARKS.sub(r"\\\1", " ".join(_visible(text).split())).replace("|", "&#124;")
    # Addresses become links even where every mark is escaped; a joiner that takes no room keeps them texts.
    # It stands in front of the colon: browsers leave one out that stands in front of a host, and follow the link.
    return _LINKS.sub(rf"\1{_JOINER}", marked)


def _best_and_worst(rows: Sequence[NotedRow], *, minimize: bool) -> list[tuple[str, list[NotedRow]]]:
    scored = [row for row in rows if row.score is not None]
    if not scored:
        return [("First rows", list(rows[:SHOWN_ROWS]))] if rows else []
    sign = 1.0 if minimize else -1.0
    ranked = sorted(scored, key=lambda row: (sign * (row.score or 0.0), row.row))
    best = ranked[:SHOWN_ROWS]
    worst = ranked[max(len(best), len(ranked) - SHOWN_ROWS) :][::-1]
    return [("Best rows", best)] + ([("Worst rows", worst)] if worst else [])


def _table(rows: Sequence[NotedRow]) -> list[str]:
    return [
        "| row | score | completion | reference | end of the prompt |",
        "| ---: | ---: | --- | --- | --- |",
        *(_line(row) for row in rows),
    ]


def _line(row: NotedRow) -> str:
    cells = (
        str(row.row),
        "" if row.score is None else f"{row.score:.4g}",
        inline(_head(row.completion, _TEXT_SHOWN)),
        inline(_head(row.reference, _TEXT_SHOWN)),
        inline(_tail(row.prompt, _PROMPT_TAIL)),
    )
    return f"| {' | '.join(cells)} |"


def _states(data: ReportData) -> str:
    counts = {state: sum(t.state == state for t in data.trials) for state in ("complete", "pruned", "failed")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _winner(data: ReportData) -> str:
    if data.best_number is None:
        return ""
    if data.holdout is None:
        return f"trial {data.best_number} so far"
    return f"trial {data.best_number}; the best few trials were decoded again with fresh noise to choose it"


def _json(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), indent=2, ensure_ascii=False, default=str)


def _tail(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"…{text[-limit:]}"


def _head(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def _visible(text: str) -> str:
    """Characters that nobody can see, and those that turn the text around them, as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
