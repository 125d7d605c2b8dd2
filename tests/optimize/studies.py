"""A small study of a synthetic engine, and what tests compare of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import SearchResult
from tests.synthetic import TextEngine, dataset, number_metric

SAMPLING = {
    "max_new_tokens": 20,
    "do_sample": True,
    "temperature": FloatDistribution(0.1, 2.0),
    "top_p": FloatDistribution(0.5, 1.0, step=0.1),
}

SPACE = [{"max_new_tokens": 20}, SAMPLING]


def run(folder: Path, engine: Any = None, *, name: str = "s", **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {
        "holdout": 0.3,
        "model": engine or TextEngine(),
        "dataset": dataset(40),
        "space": SPACE,
        "metric": number_metric,
        "n_trials": 10,
        "storage": f"sqlite:///{folder}/{name}.db",
        "study_name": "study",
        "progress": False,
    } | changed
    return search(**arguments)


def signature(result: SearchResult) -> list[Any]:
    """Everything that a study is, but for times."""
    trials = [
        (
            t.number,
            t.state,
            t.value,
            t.params,
            t.intermediate_values,
            {k: v for k, v in t.user_attrs.items() if k not in ("seconds", "engine", "memory", "gpu_memory")},
            result.row_scores(t.number),
        )
        for t in result.trials
    ]
    return [trials, [(look.winner, look.trials, look.selection, look.verdict) for look in result.looks]]


class Interrupting(TextEngine):
    """Ctrl-C comes at every n-th call."""

    every = 0

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self.every_calls = getattr(self, "every_calls", 0) + 1
        if self.every and self.every_calls % self.every == 0:
            raise KeyboardInterrupt
        return super().generate(prompts, params)


def interrupted_until_it_ends(study: Callable[[TextEngine], SearchResult], *, every: int) -> tuple[SearchResult, int]:
    """Go on with a study, interrupted at every n-th call, until it ends; return what it found, and how often it was."""
    for times in range(200):
        engine = Interrupting()
        engine.every = every
        try:
            return study(engine), times
        except (KeyboardInterrupt, StudyInterrupted):
            continue
    pytest.fail("the study does not get on")


class Recorder:
    def __init__(self) -> None:
        self.events: list[progress.Event] = []

    def on(self, event: progress.Event) -> None:
        self.events.append(event)
