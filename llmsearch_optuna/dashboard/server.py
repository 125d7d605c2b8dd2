"""The server: optuna-dashboard on the study's own database and artifacts.

It has no authentication and may write to the study, so it is bound to 127.0.0.1.
"""

from __future__ import annotations

from llmsearch_optuna.dashboard.notes_writer import NOT_INSTALLED, is_installed
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.storage.study import OpenedStudy

HOST = "127.0.0.1"


def serve(opened: OpenedStudy, *, port: int = 8080) -> None:
    """Show the study until the process is interrupted.

    Raises:
        StudyError: optuna-dashboard is not installed, or the port is taken.
    """
    if not is_installed():
        raise StudyError(NOT_INSTALLED)
    import optuna_dashboard

    # A study that still runs may not have written an artifact yet; the store needs its folder all the same.
    opened.artifacts_folder.mkdir(parents=True, exist_ok=True)
    try:
        optuna_dashboard.run_server(opened.rdb, host=HOST, port=port, artifact_store=opened.artifacts)
    except OSError as problem:
        raise StudyError(f"port {port} cannot be used ({problem.strerror}); give another one with --port") from None
