"""A study is the same whatever order rows end in, and ends when its time is up."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.search_result import SearchResult
from tests.optimize.studies import SAMPLING, run, signature
from tests.synthetic import ShuffledServer, TextEngine


@pytest.mark.parametrize("seed", range(2))
def test_a_study_does_not_depend_on_which_row_ends_first(tmp_path: Path, whole: SearchResult, seed: int) -> None:
    class Named(ShuffledServer):
        description = {"engine": "TextEngine"}  # noqa: RUF012
        name = "TextEngine"

    assert signature(run(tmp_path, Named(TextEngine(), seed))) == signature(whole)


def test_an_engine_that_fails_on_some_parameters_costs_those_trials(tmp_path: Path) -> None:
    class Picky(TextEngine):
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
            if params.get("top_p") == 0.7:
                raise RuntimeError("cannot do 0.7")
            return super().generate(prompts, params)

    space = {**SAMPLING, "top_p": CategoricalDistribution([0.6, 0.7])}
    result = run(tmp_path, Picky(), space=space)
    reasons = {t.user_attrs.get("fail_reason") for t in result.trials if t.state is TrialState.FAIL}
    assert reasons
    assert all("the engine raised RuntimeError: cannot do 0.7" in str(reason) for reason in reasons)
    assert result.verdict is not None


def test_time_may_be_limited(tmp_path: Path) -> None:
    result = run(tmp_path, timeout=0.0)
    assert len(result.trials) == 0
    assert "no trial" in result.summary
    assert len(run(tmp_path, timeout=1e6).trials) == 10


class Ageing(TextEngine):
    """Ten seconds pass at every call."""

    description = {"engine": "TextEngine"}  # noqa: RUF012
    name = "TextEngine"

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self.passed = getattr(self, "passed", 0.0) + 10.0
        return super().generate(prompts, params)


def test_a_timeout_lets_trials_end_and_ends_with_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, whole: SearchResult
) -> None:
    engine, real = Ageing(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + getattr(engine, "passed", 0.0))
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        result = run(tmp_path, engine, timeout=150.0)
    done = len(result.trials)
    assert 4 <= done < 10
    assert all(t.state.is_finished() for t in result.trials)
    assert result.verdict is not None
    assert result.looks[-1].trials == done
    assert f"the time is up: the study ends after {done} of 10 trials" in caplog.text
    assert signature(run(tmp_path, engine))[0] == signature(whole)[0], "what is left comes out as if nothing had been"
