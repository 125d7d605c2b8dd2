"""Optuna's samplers and pruners do in a search what docs/samplers-and-pruners.md says of them."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import pruners, samplers
from optuna.distributions import FloatDistribution

from llmsearch_optuna.errors import InputError
from tests.optimize.studies import run
from tests.synthetic import dataset

PAGE = (Path(__file__).parents[2] / "docs" / "samplers-and-pruners.md").read_text(encoding="utf-8")

RUN: dict[str, Callable[[], Any]] = {
    "QMCSampler": lambda: samplers.QMCSampler(seed=1),
    "CmaEsSampler": lambda: samplers.CmaEsSampler(seed=1),
    "GPSampler": lambda: samplers.GPSampler(seed=1),
    "NSGAIISampler": lambda: samplers.NSGAIISampler(seed=1),
    "MedianPruner": lambda: pruners.MedianPruner(),
    "PercentilePruner": lambda: pruners.PercentilePruner(50.0),
    "SuccessiveHalvingPruner": lambda: pruners.SuccessiveHalvingPruner(min_resource=8),
    "HyperbandPruner": lambda: pruners.HyperbandPruner(min_resource=8, max_resource=16),
    "ThresholdPruner": lambda: pruners.ThresholdPruner(lower=0.0),
    "PatientPruner": lambda: pruners.PatientPruner(pruners.MedianPruner(), patience=1),
}

REFUSED: dict[str, Callable[[], Any]] = {
    "BruteForceSampler": lambda: samplers.BruteForceSampler(),
    "GridSampler": lambda: samplers.GridSampler({"temperature": [0.5]}),
    "WilcoxonPruner": lambda: pruners.WilcoxonPruner(),
}


def told(answer: str) -> set[str]:
    """Optuna's classes of which the page gives this answer."""
    lines = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    found = [re.findall(r"`(\w+(?:Sampler|Pruner))`", cells[1]) for cells in lines if cells[2].strip() == answer]
    return {name for names in found for name in names}


def test_the_page_says_of_each_what_is_tested_here() -> None:
    assert told("yes") == set(RUN)
    assert told("refused") == set(REFUSED)


def given(name: str, made: Any) -> dict[str, Any]:
    space = {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
    return {"sampler" if name.endswith("Sampler") else "pruner": made, "space": space, "n_trials": 4}


@pytest.mark.parametrize("name", RUN)
def test_what_runs_ends_its_study(tmp_path: Path, name: str) -> None:
    if name == "CmaEsSampler" and importlib.util.find_spec("cmaes") is None:
        pytest.skip("needs cmaes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = RUN[name]()

    result = run(tmp_path, dataset=dataset(16), holdout=0.0, **given(name, made))

    assert len(result.trials) == 4
    assert all(trial.state.is_finished() for trial in result.trials)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = REFUSED[name]()
    with pytest.raises(InputError, match=name):
        run(tmp_path, dataset=dataset(16), holdout=0.0, **given(name, made))
