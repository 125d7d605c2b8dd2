"""An engine that does not repeat itself: it is found out, said, and reckoned with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.optimize.draws import stored_draws
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.search_result import SearchResult
from tests.backends.stub_server import StubServer
from tests.synthetic import dataset, number_metric, unit


def study(folder: Path, url: str, **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {"n_trials": 4, "study_name": "s", "concurrency": 8} | changed
    space = {"max_new_tokens": 16, "do_sample": False, "frequency_penalty": FloatDistribution(0.0, 1.0)}
    arguments |= {"storage": f"sqlite:///{folder}/s.db", "metric": number_metric, "progress": False}
    return search(url, dataset(24), space, **{"holdout": 0.3} | arguments)


def restless(session: int = 0, *, most: float = 0.3) -> Any:
    """Changes every answer by a little that depends on how often the same was asked."""
    times: Counter[str] = Counter()

    def change(answer: dict[str, Any], body: Any) -> dict[str, Any]:
        key = repr(sorted(body.items(), key=str))
        times[key] += 1
        text = 0.5 + most * (unit(key, times[key], session) - 0.5)
        answer["choices"][0]["message"]["content"] = f"{text:.6f}"
        return answer

    return change


def test_greedy_texts_that_vary_are_drawn_again_for_the_choice_and_the_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StubServer(change=restless()).running() as stub:
        result = study(tmp_path, stub.url)
    draws = stored_draws(result.opened)
    assert draws.greedy_varies
    assert draws.variance > 0
    assert "(greedy): draws depend on what the server computes beside them" in caplog.text
    again = result.opened.records.all_rows("finalists")
    assert set(again) - {0}, "the baseline samples, the others are greedy"
    assert {record.replicate for records in again.values() for record in records} == {1, 2, 3}
    held = result.opened.records.all_rows("holdout")
    assert all({record.replicate for record in records} == {0, 1, 2} for records in held.values())
    assert "scores carry that noise" in result.save_report(tmp_path / "r.html").read_text()


def test_a_server_that_repeats_itself_is_asked_for_greedy_texts_once(tmp_path: Path) -> None:
    with StubServer().running() as stub:
        result = study(tmp_path, stub.url)
    assert not stored_draws(result.opened).greedy_varies
    assert stored_draws(result.opened).variance == 0
    assert set(result.opened.records.all_rows("finalists")) <= {0}, "the baseline samples"


def test_other_texts_after_a_restart_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = "greedy texts are others than in an earlier session"
    with StubServer().running() as stub:
        study(tmp_path, stub.url, n_trials=2)
        study(tmp_path, stub.url, n_trials=3)
        assert words not in caplog.text
    with StubServer(change=restless(1, most=0.0)).running() as other:
        changed = study(tmp_path, other.url, n_trials=4)
        assert f"4 of 4 {words}" in caplog.text
        assert stored_draws(changed.opened).greedy_varies
        caplog.clear()
        study(tmp_path, other.url, n_trials=5)
        assert words not in caplog.text


ROWS, RISK = 72, 0.02


def dropped(noise: float, *, spread: float, told: float, studies: int = 250) -> float:
    """How often a trial is dropped that is exactly as good as the incumbent, over draws of both."""
    rng, pruner = np.random.default_rng(5), PairedPruner(risk=RISK)
    count = 0
    for _ in range(studies):
        better = rng.normal(0.0, spread, ROWS)
        incumbent = rng.normal(0.5, 0.2, ROWS)
        trial = incumbent + better - better.mean() + rng.normal(0.0, noise, ROWS)
        looks = pruner.looks(ROWS)[:-1]
        decisions = (
            pruner.decide(trial[:seen], incumbent, ROWS, bounds=None, direction="maximize", noise=told**2)
            for seen in looks
        )
        count += any(decision is not None for decision in decisions)
    return count / studies


def test_the_pruner_keeps_its_risk_where_scores_are_drawn_anew() -> None:
    assert dropped(0.3, spread=0.05, told=0.0) > 5 * RISK, "without knowing of the noise"
    assert dropped(0.3, spread=0.05, told=0.3) <= 1.5 * RISK
    assert dropped(0.0, spread=0.3, told=0.0) <= 1.5 * RISK, "as ever without noise"


def test_the_best_that_can_be_reached_is_no_certainty_where_scores_are_drawn_anew() -> None:
    incumbent = np.full(40, 0.9)
    incumbent[::2] = 0.8
    trial = np.linspace(0.3, 0.6, 32)
    for noise, rule in ((0.0, "curtailment"), (4.0, None)):
        found = PairedPruner().decide(trial, incumbent, 40, bounds=(0, 1), direction="maximize", noise=noise)
        assert (None if found is None else found.rule) == rule
