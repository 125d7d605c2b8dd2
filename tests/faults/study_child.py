"""Runs one synthetic study in a process that the tests can kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution

from llmsearch_optuna.api import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize.signals import StudyInterrupted
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = [
    {"max_new_tokens": 20},
    {
        "max_new_tokens": 20,
        "do_sample": True,
        "temperature": FloatDistribution(0.1, 2.0),
        "top_p": FloatDistribution(0.5, 1.0, step=0.1),
    },
]


class SlowEngine(TextEngine):
    """Takes its time, so that a kill often falls into a decode."""

    name = "synthetic"

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        time.sleep(0.01)
        return super().generate(prompts, params)


def study_arguments(database: str, log: str | None, n_trials: int = 16, holdout: float | str = 0.3) -> dict[str, Any]:
    """What `search` is called with; the database is a file or an address."""
    return {
        "model": SlowEngine(log=log),
        "dataset": dataset(60),
        "space": SPACE,
        "metric": number_metric,
        "n_trials": n_trials,
        "storage": database if "://" in database else f"sqlite:///{database}",
        "study_name": "study",
        "holdout": holdout,
    }


def run(database: str, log: str | None, n_trials: int = 16, holdout: float | str = 0.3) -> Any:
    return search(**study_arguments(database, log, n_trials, holdout), progress=False)


def main(database: str, log: str, n_trials: int = 16, holdout: float | str = 0.3) -> None:
    try:
        run(database, log, n_trials, holdout)
    except StudyInterrupted as interrupted:
        Path(log).with_suffix(".said").write_text(str(interrupted))
        sys.exit(3)
