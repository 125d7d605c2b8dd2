"""Reading a study: figures, and one HTML page with the verdict, the search and the completions side by side.

Works on `ReportData` alone; `collect` makes one from a result. Nothing here decodes or writes to a study.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.report.collect import collect
from llmsearch_optuna.report.data import Example, Holdout, ReportData, TrialPoint
from llmsearch_optuna.report.figures import FIGURES
from llmsearch_optuna.report.page import render, summary
from llmsearch_optuna.report.plots import Plots

if TYPE_CHECKING:
    from llmsearch_optuna.result import SearchResult

__all__ = [
    "FIGURES",
    "Example",
    "Holdout",
    "Plots",
    "ReportData",
    "TrialPoint",
    "collect",
    "render",
    "summary",
    "write_report",
]


def write_report(result: SearchResult, path: str | Path) -> Path:
    """Write the page of a result and return its path.

    Raises:
        InputError: The file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(collect(result)), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"the report cannot be written to {target}: {problem.strerror}") from None
    return target
