"""Rows that the baseline cannot decode do not count, in any order of events; more than a few end the study."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import Engine, search
from llmsearch_optuna.backends.protocol import EngineBackend
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, StudyError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.set_aside import BaselineRows
from llmsearch_optuna.search_result import SearchResult
from tests.synthetic import dataset, number_metric, score_of, temperature_near

SPACE = {"max_new_tokens": 16, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
BASELINE = {"do_sample": True, "temperature": 1.5}


class Refusing(EngineBackend):
    """Answers with a number, in a random order, but fails on some prompts; ends after so many rows."""

    def __init__(self, broken: set[str], *, shuffle: int = 0, most: int = 10**9, only: str | None = None) -> None:
        self.broken, self.random, self.left, self.only = broken, random.Random(shuffle), most, only
        self.queue: list[Request] = []
        self.asked: list[tuple[str, float]] = []

    def submit(self, requests: Any) -> None:
        self.queue += requests

    def poll(self) -> list[Finished]:
        if self.left <= 0:
            raise EngineUnavailableError("away")
        self.left -= 1
        taken = min(5, len(self.queue))
        return [self.finished(self.queue.pop(self.random.randrange(len(self.queue)))) for _ in range(taken)]

    def finished(self, request: Request) -> Finished:
        temperature = float(request.params.get("temperature", 0.0))
        self.asked.append((request.prompt, temperature))
        is_broken = any(word in request.prompt for word in self.broken)
        if is_broken and (self.only is None or f"{temperature:.1f}" == self.only):
            return Finished(request, None, DecodingError("too long"))
        asked = {"temperature": temperature, "seed": request.replicate}
        return Finished(request, Completion(f"{score_of(request.prompt, asked, temperature_near(0.7)):.6f}", (1, 2)))

    def cancel(self, tag: Any) -> None:
        self.queue = [request for request in self.queue if request.tag != tag]


def study(folder: Path, engine: EngineBackend, **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {"n_trials": 7, "study_name": "s", "baseline": BASELINE} | changed
    return search(
        engine,
        dataset(60),
        SPACE,
        metric=number_metric,
        storage=f"sqlite:///{folder}/s.db",
        progress=False,
        **{"holdout": 0.3} | arguments,
    )


def prompt_in_search(folder: Path, place: int) -> str:
    """The prompt of a search row, from a study without faults on the same rows."""
    result = study(folder, Refusing(set()), n_trials=1)
    return next(item.prompt for item in result.items.values() if item.part == "search" and item.position == place)


def told(result: SearchResult) -> list[Any]:
    trials = [
        (t.number, t.state, t.value, t.params, t.intermediate_values, t.user_attrs.get("rows")) for t in result.trials
    ]
    scores = [result.completions(t.number)[["row", "score"]].values.tolist() for t in result.trials]
    return [trials, scores, result.summary]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The prompts of the 6th search row."""
    return {prompt_in_search(tmp_path_factory.mktemp("known"), 5)}


@pytest.mark.parametrize("only", [None, "1.5"])
def test_a_row_that_the_baseline_cannot_decode_counts_in_no_trial(
    tmp_path: Path, broken: set[str], only: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    result = study(tmp_path, Refusing(broken, only=only))
    (row,) = result.set_aside
    assert result.set_aside[row] == "too long"
    assert {t.state.name for t in result.trials} <= {"COMPLETE", "PRUNED"}
    assert [t.state.name for t in result.trials].count("COMPLETE") >= 2
    for trial in result.trials:
        completions = result.completions(trial.number)
        assert row not in set(completions["row"])
        assert trial.value == pytest.approx(completions["score"].mean())
    complete = [t.number for t in result.trials if t.state.name == "COMPLETE"]
    assert {len(result.completions(number)) for number in complete} == {41}
    assert caplog.text.count(f"row {row} is set aside for the whole study") == 1
    assert "1 of 42 search rows is set aside" in result.save_report(tmp_path / "r.html").read_text()


def test_the_same_whatever_comes_first_and_wherever_it_is_interrupted(tmp_path: Path, broken: set[str]) -> None:
    (tmp_path / "whole").mkdir()
    whole = told(study(tmp_path / "whole", Refusing(broken)))
    for attempt, most in enumerate((2, 12, 30, 60)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with pytest.raises(EngineUnavailableError):
            study(folder, Refusing(broken, shuffle=attempt + 1, most=most))
        assert told(study(folder, Refusing(broken, shuffle=attempt + 2))) == whole


def test_a_row_that_only_another_trial_cannot_decode_fails_that_trial(tmp_path: Path, broken: set[str]) -> None:
    first = {"do_sample": True, "temperature": 0.9}
    result = study(tmp_path, Refusing(broken, only="0.9"), try_first=[first])
    assert not result.set_aside
    assert result.trials[0].state.name == "COMPLETE"
    (failed,) = [t for t in result.trials if t.user_attrs["params"].get("temperature") == 0.9]
    assert failed.user_attrs["fail_reason"].endswith(": too long")


def test_more_than_a_few_end_the_study_which_goes_on_once_they_are_mended(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot decode [0-9]+ of 42 search rows, and at most 5% can be .*too long"):
        study(tmp_path, Refusing({"a", "e", "i", "o"}))
    result = study(tmp_path, Refusing(set()))
    assert len(result.set_aside) <= 2
    assert result.trials[0].state.name == "COMPLETE"


class Losing(Refusing):
    """Never gives the last row of the first trial back."""

    def poll(self) -> list[Finished]:
        found = super().poll()
        return [item for item in found if item.request.tag != ("search", 0) or item.request.row != self.lost]

    def submit(self, requests: Any) -> None:
        taken = list(requests)
        self.lost = next((r.row for r in reversed(taken) if r.tag == ("search", 0)), getattr(self, "lost", -1))
        super().submit(taken)


def test_a_lost_row_of_the_baseline_is_told_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(DecodingError, match="rows of trial 0, .*have not come back"):
        study(tmp_path, Losing(set()))


def test_the_baseline_of_another_worker_is_looked_at_once_ours_is_lost(tmp_path: Path) -> None:
    result = study(tmp_path, Refusing(set()), n_trials=2)
    plan = SearchRows(task=result.task, order=(0, 1), objectives=Objectives.of(("score",), "maximize"))
    baseline = BaselineRows(result.opened, plan, 1)
    baseline.take([])
    assert baseline.set_aside(baseline.rows.order[:2]) is None
    baseline.lose()
    assert baseline.set_aside(baseline.rows.order[:2]) == frozenset()


def test_engines_of_functions_set_rows_aside_too(tmp_path: Path, broken: set[str]) -> None:
    def generate(prompts: list[str], params: Mapping[str, Any]) -> list[Any]:
        if any(prompt in broken for prompt in prompts):
            raise DecodingError("withheld")
        return ["0.5" for _ in prompts]

    result = study(tmp_path, Engine.from_function(generate), n_trials=2, batch_size=1)
    assert list(result.set_aside.values()) == ["withheld"]
