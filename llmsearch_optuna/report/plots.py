"""The figures of a result as methods, for notebooks: `result.plots.history()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from llmsearch_optuna.report import figures
from llmsearch_optuna.report.data import ReportData


@dataclass(frozen=True)
class Plots:
    """Every method returns a plotly figure; a study that has nothing to show in it gets an empty one.

    Attributes:
        data: What the figures are made from.
    """

    data: ReportData

    def history(self) -> go.Figure:
        """Scores by trial, the best so far as a line, pruned trials apart."""
        return figures.history(self.data)

    def holdout_differences(self) -> go.Figure:
        """Winner minus baseline for every holdout row, sorted, with the interval of the mean."""
        return figures.holdout_differences(self.data)

    def importances(self) -> go.Figure:
        """How much of the score's variation goes with each parameter."""
        return figures.importances(self.data)

    def learning_curves(self) -> go.Figure:
        """The running mean of every trial over the rows it saw."""
        return figures.learning_curves(self.data)

    def slices(self, names: Sequence[str] | None = None) -> go.Figure:
        """The score against one parameter at a time: the two most important ones, or those named."""
        return figures.slices(self.data, names)

    def contour(self, names: Sequence[str] | None = None) -> go.Figure:
        """The score in the plane of the two most important parameters, or of the two named."""
        return figures.contour(self.data, names)

    def score_against_tokens(self) -> go.Figure:
        """What a better score costs in generated tokens."""
        return figures.score_against_tokens(self.data)

    def rows_done(self) -> go.Figure:
        """Where pruning stopped trials."""
        return figures.rows_done(self.data)
