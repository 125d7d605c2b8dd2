"""One page of several studies: their scores on the same rows, the differences row by row, and how each searched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmsearch_optuna.analysis.compare import Compared, Comparison
from llmsearch_optuna.progress import describe_params
from llmsearch_optuna.report.collect import collect, holdout_of
from llmsearch_optuna.report.figures import history, holdout_differences
from llmsearch_optuna.report.html_text import safe
from llmsearch_optuna.report.page import document
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.whole_file import write_whole

ROWS_OF = {
    "holdout": "rows that none of them was chosen on",
    "halves": "rows, each with the winner that was not chosen on it",
    "search": "search rows, which flatter what was searched",
}
COMPARED_ON = {
    "holdout": "what each recommends",
    "halves": "the winners of both halves of each",
    "search": "the best trial of each",
}
"""On search rows a study's best trial is compared even where it recommends its baseline."""
_CALLED_ON = {"holdout": "recommended", "halves": "recommended", "search": "best trial"}


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page and return its path; raises InputError where it cannot be written."""
    return write_whole(path, render_comparison(comparison), "the comparison")


def render_comparison(comparison: Comparison) -> str:
    """The whole page; about 5 MB, nearly all of it plotly.js."""
    figures: dict[str, Any] = {}
    sections = [_top(comparison)]
    first = comparison.studies[0]
    for place, (study, pair) in enumerate(zip(comparison.studies[1:], comparison.pairs, strict=True), start=1):
        data = replace(collect(study.result), holdout=holdout_of(pair))
        figure = holdout_differences(data)
        figure.update_xaxes(title_text="rows, sorted")
        figures[f"pair-{place}"] = json.loads(figure.to_json())
        caption = f"One bar a row: {study.name} minus {first.name}. The band is the interval of their mean."
        sections.append(f"<h2>{safe(study.name)} against {safe(first.name)}</h2>" + _figure(f"pair-{place}", caption))
    for place, study in enumerate(comparison.studies):
        figures[f"history-{place}"] = json.loads(history(collect(study.result)).to_json())
        head = f"<h2>How {safe(study.name)} searched</h2>"
        sections.append(head + _figure(f"history-{place}", study.result.summary))
    return document("comparison of " + ", ".join(study.name for study in comparison.studies), sections, figures)


def _top(comparison: Comparison) -> str:
    head = "".join(
        f"<th{number}>{name}</th>"
        for name, number in (
            ("study", ""), ("model", ""), (safe(comparison.metric), ' class="number"'),
            ("difference", ' class="number"'), ("interval", ""), ("won / tied / lost", ""),
            (_CALLED_ON[comparison.part], ""),
        )
    )  # fmt: skip
    pairs: list[Verdict | None] = [None, *comparison.pairs]
    body = "".join(_row(comparison, study, pair) for study, pair in zip(comparison.studies, pairs, strict=True))
    return (
        f"<header><h1>{len(comparison.studies)} studies on the same data</h1>"
        f'<p class="soft">{COMPARED_ON[comparison.part].capitalize()}, on {len(comparison.rows)} '
        f"{ROWS_OF[comparison.part]}; "
        f"{'lower' if comparison.minimize else 'higher'} is better. Differences are taken row by row, against the "
        f"first.</p>{_caution(comparison)}</header>"
        f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _caution(comparison: Comparison) -> str:
    return "" if comparison.caution is None else f"<p>{safe(comparison.caution)}.</p>"


def _row(comparison: Comparison, study: Compared, pair: Verdict | None) -> str:
    settings = study.result.settings
    cells = [
        ("", "study", study.name),
        ("", "model", str(settings.get("model", ""))),
        ("number", comparison.metric, f"{comparison.mean(study):.4f}"),
        ("number", "difference", "" if pair is None else f"{pair.difference:+.4f}"),
        ("", "interval", "" if pair is None else interval(pair)),
        ("", "won / tied / lost", "" if pair is None else f"{pair.wins} / {pair.ties} / {pair.losses}"),
        ("", _CALLED_ON[comparison.part], describe_params(study.result.trial_params(study.trial))),
    ]
    return f"<tr>{''.join(_cell(kind, label, text) for kind, label, text in cells)}</tr>"


def _cell(kind: str, label: str, text: str) -> str:
    """An empty cell needs no label on a phone, where a row is a card."""
    labelled = f' data-label="{safe(label)}"' if text else ""
    return f'<td class="{kind}"{labelled}>{safe(text)}</td>'


def interval(pair: Verdict) -> str:
    """``-0.01 to +0.03 (p = 0.21)``."""
    low, high = ("no limit" if end is None else f"{end:+.4f}" for end in (pair.low, pair.high))
    p_value = "" if pair.p_value is None else f" (p {'< 0.001' if pair.p_value < 0.001 else f'= {pair.p_value:.3f}'})"
    return f"{low} to {high}{p_value}"


def _figure(name: str, caption: str) -> str:
    return f'<figure><div class="plot" id="figure-{name}"></div><figcaption>{safe(caption)}</figcaption></figure>'
