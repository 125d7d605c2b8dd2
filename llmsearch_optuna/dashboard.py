"""A study in optuna-dashboard: a note, the name of the objective, our figures, and the server on this machine.

The dashboard has no authentication, so it is bound to 127.0.0.1. Works without the package being installed as long
as nobody asks for the dashboard itself.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.report.data import ReportData
from llmsearch_optuna.report.figures import FIGURES
from llmsearch_optuna.storage import OpenedStudy

logger = logging.getLogger("llmsearch_optuna.dashboard")

HOST = "127.0.0.1"
NOT_INSTALLED = (
    "the dashboard is an extra that is not installed; get it with: pip install 'llmsearch-optuna[dashboard]'"
)
_OURS = "#### Outcome"
_FIGURES_SHOWN = {
    "holdout_differences": "Winner minus baseline, by holdout row",
    "score_against_tokens": "Score against tokens",
    "rows_done": "Rows scored before each trial ended",
}


def is_installed() -> bool:
    """Whether optuna-dashboard can be imported."""
    return importlib.util.find_spec("optuna_dashboard") is not None


def describe_study(study: optuna.Study, data: ReportData) -> None:
    """Write note, objective name and figures into the study; does nothing when the dashboard is not installed."""
    if not is_installed():
        return
    import optuna_dashboard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([data.metric])
    # A note that somebody changed in the dashboard is theirs; only ours is replaced.
    old = optuna_dashboard.get_note(study)
    if not old or old.startswith(_OURS):
        optuna_dashboard.save_note(study, study_note(data))
    for name, title in _FIGURES_SHOWN.items():
        figure = FIGURES[name](data).update_layout(title_text=title, title_x=0.02, margin_t=80)
        optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=f"llmsearch-{name}")


def study_note(data: ReportData) -> str:
    """The study in a few lines of Markdown."""
    facts = {
        "model": data.model,
        "data": f"{data.dataset}, {data.rows} search rows",
        "winner": _winner(data),
        "metric": f"{data.metric}, {'lower' if data.minimize else 'higher'} is better",
        "fingerprint": data.fingerprint,
    }
    lines = [_OURS, "", f"**{_inline(data.verdict_sentence)}**", ""]
    lines += [f"- {name}: {_inline(value)}" for name, value in facts.items() if value]
    if data.recommended_params:
        lines += ["", "Recommended parameters:", "", fenced(_json(data.recommended_params))]
    if data.examples:
        lines += ["", "A prompt:", "", fenced(data.examples[0].prompt[-600:])]
    return "\n".join(lines)


def _winner(data: ReportData) -> str:
    if data.best_number is None:
        return ""
    if data.holdout is None:
        return f"trial {data.best_number} so far"
    return f"trial {data.best_number}; the best few trials were decoded again with fresh noise to choose it"


def fenced(text: str) -> str:
    """The text as a Markdown code block that it cannot leave: the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def serve(opened: OpenedStudy, *, port: int = 8080) -> None:
    """Show the study until the process is interrupted.

    Raises:
        StudyError: optuna-dashboard is not installed, or the port is taken.
    """
    if not is_installed():
        raise StudyError(NOT_INSTALLED)
    import optuna_dashboard

    artifacts = opened.artifacts if opened.artifacts_folder.is_dir() else None
    try:
        optuna_dashboard.run_server(opened.rdb, host=HOST, port=port, artifact_store=artifacts)
    except OSError as problem:
        raise StudyError(f"port {port} cannot be used ({problem.strerror}); give another one with --port") from None


def _json(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), indent=2, ensure_ascii=False, default=str)


def _inline(text: str) -> str:
    """Markdown and HTML in a text that stands in a line are shown, not obeyed."""
    shown = re.sub(r"([\\`*_{}\[\]()#+!|~<>&])", r"\\\1", " ".join(text.split()))
    return shown
