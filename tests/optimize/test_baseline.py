"""The baseline is what the user has; what the space fixes beyond that is tested against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize import prepare as preparation
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.storage.study import stored_study
from tests.synthetic import TextEngine, dataset, number_metric

FIXED = {"max_new_tokens": 20, "do_sample": True, "repetition_penalty": 1.3}
SPACE = {**FIXED, "temperature": FloatDistribution(0.1, 0.9)}


class Penalized(TextEngine):
    """Greedy without a penalty scores 0.55; sampling costs 0.1, and so does a penalty."""

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        score = 0.55 - 0.1 * (params.get("do_sample") is True) - 0.1 * (params.get("repetition_penalty", 1.0) > 1.0)
        score += 0.01 * float(params.get("temperature", 0.0)) * (params.get("do_sample") is True)
        return [Completion(text=f"{score + 0.001 * (len(prompt) % 7)}", token_ids=(1,)) for prompt in prompts]


def run(folder: Path, **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {
        "model": Penalized(),
        "dataset": dataset(60),
        "space": SPACE,
        "metric": number_metric,
        "n_trials": 6,
        "storage": f"sqlite:///{folder}/study.db",
        "study_name": "study",
        "progress": False,
    } | changed
    return search(**{"holdout": 0.3} | arguments)


def test_parameters_that_are_worse_than_what_the_user_has_are_not_recommended(tmp_path: Path) -> None:
    """With the space's penalty in the baseline this was "better", and 0.35 was recommended over 0.55."""
    result = run(tmp_path)
    assert result.baseline_params.get("repetition_penalty") is None
    assert result.baseline_params.get("do_sample") is not True
    assert result.best_trial.number == 0
    assert result.recommended_params == result.baseline_params


def test_what_the_space_fixes_besides_is_said(tmp_path: Path) -> None:
    result = run(tmp_path)
    note = result.settings["baseline_note"]
    assert "The baseline is the model's generation configuration, up to 20 new tokens." in note
    assert "The space fixes do_sample=True, repetition_penalty=1.3 besides, which are part of what is tested." in note
    report = result.save_report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "part of what is tested" in report
    plain = run(tmp_path, space={"max_new_tokens": 20, "temperature": FloatDistribution(0.1, 0.9)}, study_name="plain")
    assert "part of what is tested" not in plain.settings["baseline_note"]


def test_a_study_from_before_goes_on_by_its_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(preparation, "ALGORITHM", 1)
        old = run(tmp_path, n_trials=4)
    assert old.baseline_params["repetition_penalty"] == 1.3
    going_on = run(tmp_path, n_trials=6)
    assert len(going_on.trials) == 6
    assert going_on.baseline_params["repetition_penalty"] == 1.3
    fresh = run(tmp_path, study_name="fresh")
    assert "repetition_penalty" not in fresh.baseline_params
    assert preparation.algorithm_of(stored_study(f"sqlite:///{tmp_path}/study.db", "study")) == 1
    assert preparation.algorithm_of(stored_study(f"sqlite:///{tmp_path}/study.db", "fresh")) == preparation.ALGORITHM
    assert stored_study(f"sqlite:///{tmp_path}/nothing.db", "study") is None
    assert preparation.algorithm_of(None) == preparation.ALGORITHM
    assert not (tmp_path / "nothing.db").exists()
