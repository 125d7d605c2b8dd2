"""Reading a study: figures, and one HTML page with the verdict, the search and the completions side by side.

Works on `ReportData` alone; `collect` makes one from a result. Nothing here decodes or writes to a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.report.collect import collect, rescored
from llmsearch_optuna.report.data import Example, Holdout, ReportData, Rescored, TrialPoint
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
    "Rescored",
    "TrialPoint",
    "collect",
    "render",
    "rescored",
    "summary",
    "write_report",
]


def write_report(result: SearchResult, path: str | Path, others: Sequence[Rescored] = ()) -> Path:
    """Write the page of a result and return its path.

    Args:
        result: The result.
        path: Where to; folders are made.
        others: The same completions by other metrics; see `rescored`.

    Raises:
        InputError: The file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(replace(collect(result), rescored=tuple(others))), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"the report cannot be written to {target}: {problem.strerror}") from None
    return target
