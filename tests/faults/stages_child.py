"""Runs a study with a reserve in a process that kills itself in the middle of a stage of the verdict."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from tests.optimize.studies import SPACE
from tests.synthetic import TextEngine, dataset, number_metric, temperature_near


def small_gain(params: Mapping[str, Any]) -> float:
    return 0.12 * temperature_near(0.7)(params)


class Mortal(TextEngine):
    """Dies at a call of a stage; never where that is 0."""

    def __init__(self, stage: int, calls: int = 2) -> None:
        super().__init__(small_gain)
        self._stage, self._calls, self._is_on = stage, calls, False

    def on(self, event: progress.Event) -> None:
        self._is_on |= isinstance(event, progress.VerdictStarted) and event.stage == self._stage

    def generate(self, prompts: Any, params: Mapping[str, Any]) -> Any:
        self._calls -= self._is_on
        if self._calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prompts, params)


def run(database: str, engine: Mortal) -> Any:
    return search(
        engine,
        dataset(220),
        SPACE,
        metric=number_metric,
        n_trials=6,
        search_rows=20,
        holdout_rows=160,
        storage=f"sqlite:///{database}",
        study_name="study",
        observer=engine,
    )


def main(database: str, stage: int) -> None:
    """Go on with the study until that stage, or until it is complete."""
    run(database, Mortal(stage))
