"""Find the generation parameters with which a model scores best on a dataset, and say whether they beat the defaults.

The public names are the ones in ``__all__``; they are loaded when they are first used, so that the command line
answers ``--help`` without loading a machine learning framework.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from llmsearch_optuna.openmp import limit_spinning

if TYPE_CHECKING:
    from llmsearch_optuna import presets
    from llmsearch_optuna.api import check, confirm, forecast, score, search
    from llmsearch_optuna.engine.engine import Engine
    from llmsearch_optuna.judging.judge import judge
    from llmsearch_optuna.search_result import SearchResult
    from llmsearch_optuna.task.task import Task
    from llmsearch_optuna.verbosity import set_verbosity

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "SearchResult",
    "Task",
    "check",
    "confirm",
    "forecast",
    "judge",
    "presets",
    "score",
    "search",
    "set_verbosity",
]

limit_spinning(os.environ)

_HOMES = {
    "Engine": "llmsearch_optuna.engine.engine",
    "SearchResult": "llmsearch_optuna.search_result",
    "Task": "llmsearch_optuna.task.task",
    "check": "llmsearch_optuna.api",
    "confirm": "llmsearch_optuna.api",
    "forecast": "llmsearch_optuna.api",
    "judge": "llmsearch_optuna.judging.judge",
    "score": "llmsearch_optuna.api",
    "search": "llmsearch_optuna.api",
    "set_verbosity": "llmsearch_optuna.verbosity",
}


def __getattr__(name: str) -> object:
    if name == "presets":
        return importlib.import_module("llmsearch_optuna.presets")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
