"""A study in optuna-dashboard: notes, the objective's name, our figures, and the server on this machine.

`notes` makes Markdown from plain values, `notes_writer` puts it into the study, `server` shows it. The package
optuna-dashboard is an extra: without it nothing is written, and a study is none the worse for it.
"""

from llmsearch_optuna.dashboard.notes_writer import (
    NOT_INSTALLED,
    StudyPageCallback,
    TrialNoteCallback,
    describe_all,
    is_installed,
)
from llmsearch_optuna.dashboard.server import HOST, serve

__all__ = ["HOST", "NOT_INSTALLED", "StudyPageCallback", "TrialNoteCallback", "describe_all", "is_installed", "serve"]
