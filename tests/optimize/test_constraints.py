"""Conditions of a search: which trials are feasible, which are pruned for them, who wins, and what the verdict says."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from scipy import stats

from llmsearch_optuna import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.metrics import Metric
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.report import collect, render
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.stats.conditions import SEARCH_LEVEL
from tests.optimize.studies import signature
from tests.synthetic import TextEngine, dataset, number_metric, score_of, unit

SPACE = {"max_new_tokens": 40, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
BASELINE = {"do_sample": True, "temperature": 0.1}
CONDITIONS = {"terminates": ">= 0.8", "tokens": "<= 20"}


class Trading(TextEngine):
    """A higher temperature scores better, writes more, and ends by itself less often."""

    def __init__(self, *, fail_after: int | None = None) -> None:
        super().__init__(quality=lambda params: float(params.get("temperature", 0.0)) / 2)
        self._left = fail_after

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        temperature = float(params.get("temperature", 0.0))
        ends = unit(prompt, temperature, "ends") > 0.25 * temperature**2
        length = round(10 + 8 * temperature * unit(prompt, "length"))
        text = f"{score_of(prompt, params, self.quality):.6f}"
        return Completion(text, tuple(range(length)), "eos" if ends else "length", len(prompt))


def run(folder: Path, engine: Any = None, *, name: str = "s", **changed: Any) -> SearchResult:
    given: dict[str, Any] = {"n_trials": 16, "constraints": CONDITIONS, "baseline": BASELINE, **changed}
    return search(
        engine or Trading(), dataset(160), SPACE, metric=number_metric, study_name="s", progress=False,
        storage=f"sqlite:///{folder}/{name}.db", **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(tmp_path_factory.mktemp("constraints"))


def feasible_by_hand(result: SearchResult, number: int, total: int = 0) -> bool:
    """A plain loop over the rows, and Clopper and Pearson's bound from scipy; every prompt is its own.

    Rows that are missing to the total end by themselves at once.
    """
    records = result.records(number)
    missing = max(0, total - len(records))
    ended = sum(r.finish_reason == "eos" for r in records) + missing
    ci = stats.binomtest(ended, len(records) + missing).proportion_ci(1 - 2 * SEARCH_LEVEL, method="exact")
    lengths = sorted([len(r.token_ids) for r in records] + [0] * missing, reverse=True)
    upper = [float(stats.beta.ppf(1 - SEARCH_LEVEL, k + 1, len(lengths) - k)) for k in range(len(lengths))] + [1.0]
    tokens = 40 * upper[0] + sum(t * (b - a) for t, a, b in zip(lengths, upper, upper[1:], strict=False))
    return ci.low >= 0.8 and tokens <= 20


def test_trials_are_feasible_by_the_bound_of_their_rows(result: SearchResult) -> None:
    complete = [t for t in result.trials if t.state.name == "COMPLETE"]
    for t in complete:
        assert all(v <= 0 for v in t.constraints.values()) == feasible_by_hand(result, t.number)
        assert t.constraints.keys() == CONDITIONS.keys()
    by_hand = [t for t in complete if feasible_by_hand(result, t.number)]
    assert 0 < len(by_hand) < len(result.trials)


def test_the_winner_is_feasible_though_others_score_better(result: SearchResult) -> None:
    assert feasible_by_hand(result, result.best_trial.number)
    free = run_free(result)
    assert free.best_params["temperature"] > result.best_params["temperature"]


def run_free(result: SearchResult) -> SearchResult:
    path = result.opened.path
    assert path is not None
    return run(path.parent, name="free", constraints=None)


def test_trials_are_pruned_when_they_cannot_become_feasible(result: SearchResult) -> None:
    told = [t for t in result.trials if "cannot become feasible" in str(t.user_attrs.get("prune_reason"))]
    assert told
    for t in told:
        done, total = map(int, t.user_attrs["rows"].split(" of "))
        assert len(result.records(t.number)) == done < total
        assert not feasible_by_hand(result, t.number, total)
        assert max(t.constraints.values()) > 0


def test_the_verdict_speaks_about_score_and_conditions(result: SearchResult) -> None:
    verdict = result.verdict
    assert verdict is not None
    assert [c.name for c in verdict.conditions] == list(CONDITIONS)
    holdout = result.records(result.best_trial.number, "holdout")
    rows = {r.row for r in holdout}
    ended = {row: np.mean([r.finish_reason == "eos" for r in holdout if r.row == row]) for row in rows}
    assert verdict.conditions[0].winner_mean == pytest.approx(np.mean(list(ended.values())))
    assert verdict.conditions[1].winner == "holds"
    assert "terminates >= 0.8" in verdict.notes
    holds = all(c.winner == "holds" for c in verdict.conditions)
    needed = any(c.baseline != "holds" for c in verdict.conditions)
    assert verdict.recommends_winner == (holds and (needed or verdict.answer == "better"))
    assert verdict.notes in html.unescape(render(collect(result)))


def test_tables_show_the_means(result: SearchResult) -> None:
    table = result.trials_dataframe()
    for t in result.trials:
        records = result.records(t.number)
        assert table.loc[t.number, "condition_tokens"] == pytest.approx(np.mean([len(r.token_ids) for r in records]))
    assert set(table["feasible"]) == {True, False}
    assert '<th class="number">terminates</th>' in render(collect(result))
    assert load_result(result.opened.url).settings["constraints"] == CONDITIONS


def test_a_study_that_was_interrupted_comes_out_the_same(tmp_path: Path, result: SearchResult) -> None:
    for _ in range(20):
        try:
            found = run(tmp_path, Trading(fail_after=400))
            break
        except StudyInterrupted:
            continue
    assert signature(found) == signature(result)
    assert [t.constraints for t in found.trials] == [t.constraints for t in result.trials]
    with pytest.raises(StudyError, match="constraints"):
        run(tmp_path, constraints={"terminates": ">= 0.7"})


def test_where_none_is_feasible_the_nearest_is_named(tmp_path: Path) -> None:
    found = run(tmp_path, constraints={"tokens": "<= 5"}, n_trials=4)
    assert found.verdict is not None
    nearest = min(
        (t for t in found.trials if t.state.name == "COMPLETE"), key=lambda t: (t.constraints["tokens"], t.number)
    )
    assert found.best_trial.number == nearest.number
    assert f"The nearest is trial {nearest.number}: tokens is shown to be at most" in found.verdict.sentence
    assert not found.records(nearest.number, "holdout")
    assert found.recommended_params == found.baseline_params


def test_samplers_of_optuna_see_the_constraints(tmp_path: Path) -> None:
    sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=0)
    found = run(tmp_path, sampler=sampler, n_trials=8)
    assert all(t.constraints for t in found.study.trials if t.state.name != "FAIL")


def shortness(predictions: list[str], references: list[Any]) -> list[float]:
    return [1 / (1 + len(p)) for p in predictions]


def corpus(predictions: list[str], references: list[Any]) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["terminates"], "must be a dict"),
        ({"terminates": 0.9}, "is no limit"),
        ({"terminats": ">= 0.9"}, "did you mean 'terminates'"),
        ({shortness: ">= 0.1"}, "give it bounds"),
        ({Metric.of(corpus, bounds=(0, 1)): ">= 0.1"}, "one score a row"),
        ({"terminates": ">= 1.5"}, "from 0 to 1 only"),
        ({"terminates": ">= 1"}, "no number of rows shows"),
        ({"terminates": ">= 0.999"}, "distinct search prompts cannot show"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_decoding(tmp_path: Path, given: Any, complaint: str) -> None:
    engine = Trading()
    with pytest.raises(InputError, match=complaint):
        run(tmp_path, engine, constraints=given)
    assert not engine.calls


def test_too_few_held_out_rows_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path, constraints={"terminates": ">= 0.97"}, n_trials=1)
    assert "60 held-out prompts cannot show that terminates >= 0.97 holds" in caplog.text


def test_a_function_of_the_users_own_is_a_condition_too() -> None:
    found = Constraints.of({Metric.of(shortness, bounds=(0, 1)): ">= 0.1"}, postprocess=str.strip)
    assert found.limits == {"shortness": ">= 0.1"}
    assert "postprocess" in found.description[0]
