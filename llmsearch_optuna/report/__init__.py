"""Reading a study: figures, and one HTML page with the verdict, the search and the completions side by side.

Works on `ReportData` alone; `collect` makes one from a result. Nothing here decodes or writes to a study.
"""

from llmsearch_optuna.report.data import Example, Holdout, ReportData, TrialPoint
from llmsearch_optuna.report.figures import FIGURES
from llmsearch_optuna.report.page import render, summary

__all__ = ["FIGURES", "Example", "Holdout", "ReportData", "TrialPoint", "render", "summary"]
