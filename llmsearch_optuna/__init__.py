"""Find the generation parameters that make this model score best on this dataset, and say whether they beat the defaults.

The public names are the ones in ``__all__``; they are loaded when they are first used, so that the command line
answers ``--help`` without loading a machine learning framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsearch_optuna import presets
    from llmsearch_optuna.decoding.engine import Engine
    from llmsearch_optuna.result import SearchResult
    from llmsearch_optuna.search import score, search
    from llmsearch_optuna.task import Task

__version__ = "0.1.0"
__all__ = ["Engine", "SearchResult", "Task", "presets", "score", "search"]

_HOMES = {
    "Engine": "llmsearch_optuna.decoding.engine",
    "SearchResult": "llmsearch_optuna.result",
    "Task": "llmsearch_optuna.task",
    "score": "llmsearch_optuna.search",
    "search": "llmsearch_optuna.search",
}


def __getattr__(name: str) -> object:
    if name == "presets":
        return importlib.import_module("llmsearch_optuna.presets")
    if name in _HOMES:
        # Not getattr on the package: the function `search` shares its name with the room it lives in.
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
