"""The result of a search: a study that can be read, and the ways to show it and to write it down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmsearch_optuna.analysis.export import save_generation_config
from llmsearch_optuna.analysis.pareto import FrontPoint, front_of, pick
from llmsearch_optuna.analysis.view import StudyView
from llmsearch_optuna.storage.study import OpenedStudy, read_study
from llmsearch_optuna.task.prepared_task import PreparedTask

if TYPE_CHECKING:
    from llmsearch_optuna.report import Plots


def load_result(storage: str | None, study_name: str | None = None) -> SearchResult:
    """Read the result of a study that exists, finished or not.

    Args:
        storage: SQLAlchemy URL or the path of an SQLite file; None means ``sqlite:///studies/<study_name>.db``.
        study_name: May be left out when the database holds one study only.

    Raises:
        StudyError: There is no such study.
    """
    return SearchResult.of(read_study(storage, study_name))


@dataclass(frozen=True, repr=False)
class SearchResult(StudyView):
    """The result of a search; see `search` and `load_result`.

    Attributes:
        opened: The study with its records.
        task: What was searched on, while it is in memory; references and rows are read from the study otherwise.
    """

    @classmethod
    def of(cls, opened: OpenedStudy, task: PreparedTask | None = None) -> SearchResult:
        """The result of an opened study."""
        return cls(opened, task)

    @property
    def front(self) -> list[FrontPoint]:
        """The trials that no other one beats in all objectives, worst score first.

        Raises:
            StudyError: The study was not searched with several objectives, such as ``("score", "tokens")``.
        """
        return front_of(self)

    def pick(self, max_tokens: float | None = None) -> FrontPoint:
        """The best score on the front that takes at most so many generated tokens a row.

        Its score is from the search rows, and only the winner has a verdict: check another point with `score` on
        rows of your own before you rely on it.

        Raises:
            InputError: No trial writes so little.
            StudyError: The study has one objective.
        """
        return pick(self.front, max_tokens)

    @property
    def plots(self) -> Plots:
        """Figures of the study as it is now; each method returns a plotly figure."""
        from llmsearch_optuna.report import Plots, collect

        return Plots(collect(self))

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, numbers, recommended parameters."""
        from llmsearch_optuna.report import collect, summary

        return summary(collect(self))

    def save_report(self, path: str | Path) -> Path:
        """Write the report as one self-contained HTML page."""
        from llmsearch_optuna.report.page import write_report

        write_report(self, path)
        return Path(path)

    def save_generation_config(self, folder: str | Path) -> Path:
        """Write recommended_params as a `generation_config.json`, and `evidence.json` beside it.

        Returns:
            The path of the `generation_config.json`.
        """
        return save_generation_config(self, folder)
