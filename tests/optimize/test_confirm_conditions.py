"""Confirmed elsewhere: the study's conditions, and greedy texts that vary there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna.api import check, confirm, search
from llmsearch_optuna.backends.function import FunctionBackend
from llmsearch_optuna.backends.protocol import Repetition
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.search_result import SearchResult
from tests.synthetic import TextEngine, dataset, number_metric, unit

SPACE = {"max_new_tokens": 40, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
CONDITIONS = {"terminates": ">= 0.8", "tokens": "<= 30"}
ASKED: dict[str, Any] = {"metric": number_metric}


class Ending(TextEngine):
    """Ends by itself on a share of the rows, whatever the parameters; a higher temperature scores better."""

    def __init__(self, share: float, tokens: int = 10) -> None:
        super().__init__(quality=lambda params: float(params.get("temperature", 0.0)) / 2)
        self._share, self._tokens = share, tokens

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        made = super().complete(prompt, params)
        reason = "eos" if unit(prompt, "ends") < self._share else "length"
        return Completion(made.text, tuple(range(self._tokens)), reason, len(prompt))


def study(folder: Path, **changed: Any) -> SearchResult:
    given: dict[str, Any] = {"constraints": CONDITIONS, "baseline": {"do_sample": True, "temperature": 0.1}, **changed}
    return search(
        Ending(1.0),
        dataset(160),
        SPACE,
        **ASKED,
        n_trials=5,
        storage=f"sqlite:///{folder}/s.db",
        study_name="s",
        progress=False,
        **given,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return study(tmp_path_factory.mktemp("conditions"))


def test_the_same_engine_keeps_the_conditions_by_the_same_bounds(result: SearchResult) -> None:
    assert result.verdict.recommends_winner
    found = confirm(result, Ending(1.0), dataset(160), **ASKED)
    assert found.here.conditions == found.study.conditions != ()
    assert found.holds


@pytest.mark.parametrize(("engine", "broken"), [(Ending(0.5), "terminates"), (Ending(1.0, tokens=39), "tokens")])
def test_a_condition_that_is_broken_there_speaks_against_the_winner(
    result: SearchResult, engine: Ending, broken: str
) -> None:
    found = confirm(result, engine, dataset(160), **ASKED, constraints=CONDITIONS)
    assert found.here.answer == found.study.answer == "better"
    assert {c.name: c.winner for c in found.here.conditions if c.winner != "holds"} == {broken: "broken"}
    assert not found.holds
    assert f"Not shown to hold: {broken}" in found.sentence


def test_other_conditions_are_refused(result: SearchResult) -> None:
    with pytest.raises(InputError, match=r"has constraints \{'terminates'.*not \{'tokens': '<= 9'\}"):
        confirm(result, Ending(1.0), dataset(160), **ASKED, constraints={"tokens": "<= 9"})
    with pytest.raises(TypeError, match="constraints"):
        check(result, Ending(1.0), dataset(160), **ASKED, constraints=CONDITIONS)


def test_a_condition_on_a_metric_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    def short(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [float(len(prediction) < 100) for prediction in predictions]

    short.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
    own = study(tmp_path, constraints={short: ">= 0.8"})
    with pytest.raises(InputError, match="give constraints= as they were given to search"):
        confirm(own, Ending(1.0), dataset(160), **ASKED)
    found = confirm(own, Ending(1.0), dataset(160), **ASKED, constraints={short: ">= 0.8"})
    assert [(c.name, c.winner) for c in found.here.conditions] == [("short", "holds")]
    assert Constraints.of({short: ">= 0.8"}).limits == {"short": ">= 0.8"}


def test_a_condition_whose_metric_fails_there_has_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Ending(1.0)

    def whole(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        if any(prediction == "?" for prediction in predictions):
            raise ValueError("no number")
        return [1.0 for _ in predictions]

    whole.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
    own = study(tmp_path, constraints={whole: ">= 0.8"})
    engine.complete = lambda prompt, params: Completion("?", (1,), "eos", 1)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        found = confirm(own, engine, dataset(160), **ASKED, constraints={whole: ">= 0.8"})
    assert [(c.winner, c.winner_mean) for c in found.here.conditions] == [("not shown", None)]
    assert "a condition could not be checked on the holdout" in caplog.text
    assert not found.holds


class Unsteady(FunctionBackend):
    """An engine whose greedy texts may differ when it is asked again, as it says."""

    def __init__(self, engine: TextEngine, *, is_steady: bool) -> None:
        super().__init__(engine)
        self._steady = 1 if is_steady else 0
        self.probes = 0

    def repetition(self, rows: Sequence[Request], *, only_alone: bool = False) -> Repetition | None:
        self.probes += 1
        assert {row.params.get("do_sample", False) for row in rows} == {False}
        return Repetition(1, 1, self._steady)


@pytest.mark.parametrize("is_steady", [True, False])
def test_greedy_texts_that_vary_there_are_decoded_as_often_as_sampled_ones(tmp_path: Path, is_steady: bool) -> None:
    sampled = study(tmp_path, constraints=None, baseline={"do_sample": False}, holdout_replicates=3)
    assert (sampled.verdict.baseline_replicates, sampled.verdict.winner_replicates) == (1, 3)
    backend = Unsteady(Ending(1.0), is_steady=is_steady)
    found = confirm(sampled, backend, dataset(160), **ASKED)
    assert backend.probes == 1
    assert (found.here.baseline_replicates, found.here.winner_replicates) == (1 if is_steady else 3, 3)
