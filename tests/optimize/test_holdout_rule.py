"""Small data are split into halves that judge each other unless something speaks against it, and that is said."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from llmsearch_optuna.api import forecast
from llmsearch_optuna.declaration import completed
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize import prepare as preparation
from llmsearch_optuna.optimize.constraints import NO_CONSTRAINTS, Constraints
from llmsearch_optuna.optimize.holdout_rule import HoldoutRule
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.options import PlanOptions
from llmsearch_optuna.progress import StudyStarted
from llmsearch_optuna.progress.terminal import Terminal
from llmsearch_optuna.search_result import SearchResult
from tests.optimize.studies import SPACE, Recorder, interrupted_until_it_ends, run, signature
from tests.synthetic import TextEngine, dataset, number_metric


def rule(
    prompts: int = 40,
    *,
    rows_a_prompt: int = 1,
    objectives: Any = "score",
    constraints: Constraints = NO_CONSTRAINTS,
    algorithm: int = preparation.ALGORITHM,
    **options: Any,
) -> HoldoutRule:
    wanted = Objectives.of(objectives, "maximize", metric="f1")
    ids = [number for number in range(prompts) for _ in range(rows_a_prompt)]
    return HoldoutRule.of(completed(PlanOptions, options), ids, wanted, constraints, algorithm)


def by_default(folder: Path, engine: Any = None, **changed: Any) -> SearchResult:
    return run(folder, engine, **{"holdout": "auto", "n_trials": 12} | changed)


@pytest.mark.parametrize(("prompts", "kept"), [(11, 0.3), (12, "cross"), (140, "cross"), (141, 0.3)])
def test_the_number_of_different_prompts_decides(prompts: int, kept: float | str) -> None:
    assert rule(prompts).kept == kept
    assert rule(prompts, rows_a_prompt=3).kept == kept


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"margin": 0.1}, "margin=0.1"),
        ({"folds": 2}, "folds=2"),
        ({"objectives": ("score", "tokens")}, "objectives="),
        ({"constraints": Constraints.of({"tokens": "<= 5"})}, "constraints="),
        ({"sampler": optuna.samplers.RandomSampler()}, "sampler=RandomSampler"),
        ({"pruner": optuna.pruners.MedianPruner()}, "pruner=MedianPruner"),
    ],
)
def test_what_halves_do_not_go_together_with_holds_out_a_share_and_is_named(
    changed: dict[str, Any], words: str
) -> None:
    found = rule(**changed)
    assert found.kept == 0.3
    assert f"do not go together with {words}" in found.why


@pytest.mark.parametrize("changed", [{"holdout": 0.3}, {"holdout": 0.0}, {"search_rows": 20}, {"algorithm": 3}])
def test_what_the_user_says_a_reserve_and_earlier_rules_are_kept_to(changed: dict[str, Any]) -> None:
    found = rule(**changed)
    assert found.kept == changed.get("holdout", 0.3)
    assert found.why == ""


def test_forty_rows_judge_each_other_by_default_and_that_is_said(tmp_path: Path) -> None:
    recorder = Recorder()

    result = by_default(tmp_path, callbacks=[recorder])

    assert sorted(map(len, result.halves)) == [20, 20]
    assert result.verdict is not None
    assert result.verdict.rows == 40
    (started,) = [event for event in recorder.events if isinstance(event, StudyStarted)]
    told = "All 40 rows are searched and judged: in two halves of 20 and 20"
    assert started.split.startswith(told)
    assert "the default for 12 to 140 different prompts" in started.split
    assert result.settings["split_note"] == started.split
    report = result.save_report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert told in report
    out = StringIO()
    Terminal(console=Console(file=out, width=200)).on(started)
    assert told in out.getvalue()


def test_asking_for_it_goes_on_with_the_same_study(tmp_path: Path) -> None:
    whole, engine = by_default(tmp_path), TextEngine()

    again = by_default(tmp_path, engine, holdout="cross")

    assert not engine.calls
    assert signature(again) == signature(whole)
    with pytest.raises(StudyError, match="holdout"):
        by_default(tmp_path, holdout=0.3)


def test_an_interrupted_study_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = by_default(tmp_path, name="whole")
    result, times = interrupted_until_it_ends(lambda engine: by_default(tmp_path, engine, name="broken"), every=15)

    assert times > 2
    assert signature(result) == signature(whole)


def test_a_study_of_the_version_before_keeps_its_split(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(preparation, "ALGORITHM", 3)
        before = by_default(tmp_path, n_trials=4)
    assert before.halves == ()
    engine = TextEngine()

    after = by_default(tmp_path, engine, n_trials=4)

    assert not engine.calls
    assert signature(after) == signature(before)
    assert len(by_default(tmp_path, n_trials=6).row_scores(0)) == 28


def test_rows_that_are_held_out_instead_are_told_with_the_reason(tmp_path: Path) -> None:
    result = by_default(tmp_path, n_trials=3, margin=0.1)

    assert result.halves == ()
    assert result.settings["split_note"] == (
        "12 of 40 rows are held out for the verdict: no trial sees them. Two halves that judge each other find more, "
        "but do not go together with margin=0.1: it asks whether one setting is as good, and halves judge two together."
    )


def test_few_rows_that_nothing_judges_are_not_told_of_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = by_default(tmp_path, n_trials=3, dataset=dataset(11))

    assert result.settings["split_note"] == ""
    assert "11 rows are too few to hold some out; there will be no verdict" in caplog.text


def test_a_forecast_splits_as_the_search_does() -> None:
    found = forecast(TextEngine(), dataset(40), SPACE, metric=number_metric, n_trials=8)
    held = forecast(TextEngine(), dataset(40), SPACE, metric=number_metric, n_trials=8, margin=0.1)

    assert "two halves of 20 and 20" in found.split
    assert held.split.startswith("12 of 40 rows are held out")
