"""Reading a study: figures, and one HTML page with the verdict, the search and the completions side by side.

Works on `ReportData` alone; `collect` makes one from a result. Nothing here decodes or writes to a study.
"""

from __future__ import annotations

from llmsearch_optuna.report.collect import collect, rescored
from llmsearch_optuna.report.data import Example, Holdout, ReportData, Rescored, TrialPoint
from llmsearch_optuna.report.figures import FIGURES, Plots
from llmsearch_optuna.report.page import render, summary, write_report

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
