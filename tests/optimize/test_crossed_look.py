"""What comes after two halves have judged each other: other metrics, confirm, check, compare, report and tables."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmsearch_optuna.analysis.compare import compare_studies
from llmsearch_optuna.analysis.export import save_generation_config
from llmsearch_optuna.analysis.status import read_status
from llmsearch_optuna.api import check, confirm
from llmsearch_optuna.cli.output import print_comparison, print_outcome
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.report import collect
from llmsearch_optuna.report.compare_page import render_comparison
from llmsearch_optuna.report.page import render
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.trials import half_of
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric, temperature_near


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(tmp_path_factory.mktemp("crossed"), holdout="cross", n_trials=12)


def verdict_of(result: SearchResult) -> Verdict:
    assert result.verdict is not None
    return result.verdict


def unseen(result: SearchResult) -> set[int]:
    """The rows that what is recommended was not chosen on."""
    return set(result.halves[1 - (half_of(result.best_trial) or 0)])


def test_lower_scores_win_where_the_metric_says_so(result: SearchResult, tmp_path: Path) -> None:
    mirrored = run(
        tmp_path,
        TextEngine(lambda params: 1.0 - temperature_near(0.7)(params)),
        holdout="cross",
        n_trials=12,
        direction="minimize",
    )

    verdict = verdict_of(mirrored)
    assert verdict.answer == "better"
    assert verdict.difference is not None
    assert verdict.difference < 0
    assert all(half.difference < 0 for half in verdict.halves)
    (chosen,) = [half for half in verdict.halves if half.is_chosen]
    assert chosen.overall == min(half.overall for half in verdict.halves)


def corpus_mean(predictions: Sequence[str], references: Sequence[Any]) -> float:
    return sum(number_metric(predictions, references)) / len(predictions)


def test_a_metric_of_all_rows_finds_what_its_mean_by_row_finds(result: SearchResult, tmp_path: Path) -> None:
    metric = Metric.of(corpus_mean, per_row=False, bounds=(0.0, 1.0))

    whole = run(tmp_path, holdout="cross", n_trials=12, metric=metric, pruner="none")
    by_row = run(tmp_path, name="rows", holdout="cross", n_trials=12, pruner="none")

    assert whole.looks[0].winners == by_row.looks[0].winners
    assert verdict_of(whole).difference == pytest.approx(verdict_of(by_row).difference)
    for one, other in zip(verdict_of(whole).halves, verdict_of(by_row).halves, strict=True):
        assert (one.trial, one.is_chosen) == (other.trial, other.is_chosen)
        assert one.difference == pytest.approx(other.difference)
        assert one.overall == pytest.approx(other.overall)


def test_a_winner_without_chance_is_judged_beside_one_that_samples(tmp_path: Path) -> None:
    space = [{"max_new_tokens": 20, "temperature": 0.7, "do_sample": True}, {"max_new_tokens": 20}]
    first = run(tmp_path, space=space, sampler="grid", n_trials=None, holdout="cross")
    half = first.halves[0]

    def likes_greedy_on_one_half(prompt: str, params: Any) -> Any:
        is_first = int(prompt.split()[1]) in half
        good = (not params.get("do_sample")) if is_first else bool(params.get("do_sample"))
        return TextEngine(lambda _: float(good)).complete(prompt, params)

    engine = TextEngine()
    engine.complete = likes_greedy_on_one_half  # type: ignore[method-assign]
    baseline = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.9}
    mixed = run(
        tmp_path, engine, name="mixed", space=space, sampler="grid", n_trials=None, holdout="cross", baseline=baseline
    )

    kinds = {mixed.trials[winner].user_attrs["params"].get("do_sample", False) for winner in mixed.looks[0].winners}
    assert kinds == {True, False}
    verdict = verdict_of(mixed)
    assert (verdict.baseline_replicates, verdict.winner_replicates) == (3, 3)
    assert len(verdict.differences) == 40


def is_warm(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(score > 0.6) for score in number_metric(predictions, references)]


is_warm.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


def test_samples_and_prompts_are_judged_as_they_are_searched(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "baseline": {"do_sample": True, "temperature": 1.5},
        "prompt": ["{prompt}", "Please: {prompt}"],
        "samples": 3,
        "aggregate": "pass@3",
        "metric": is_warm,
    }

    result = run(tmp_path, holdout="cross", n_trials=14, **asked)

    for number, rows in ((0, 40), *((winner, 20) for winner in result.looks[0].winners)):
        records = result.records(number, "holdout")
        assert len({r.row for r in records}) == rows
        assert {len(r.samples) for r in records} == {3}
        assert {r.replicate for r in records} == {1, 2, 3}
    assert len({t.user_attrs["params"]["prompt"] for t in result.trials}) == 2
    assert len(verdict_of(result).differences) == 40


def test_the_locked_rows_are_those_that_the_recommended_one_was_not_chosen_on(result: SearchResult) -> None:
    asked: dict[str, Any] = {"metric": number_metric}
    engine = TextEngine()

    again = confirm(result, engine, dataset(40), **asked)
    found = check(result, TextEngine(), dataset(40), **asked)

    assert {int(prompt.split()[1]) for prompt, _ in engine.calls} == unseen(result)
    (chosen,) = [half for half in verdict_of(result).halves if half.is_chosen]
    assert again.here.rows == chosen.rows
    assert again.here.difference == pytest.approx(chosen.difference)
    assert "none seen by its winner" in again.sentence
    assert (found.found.rows, found.found.changed) == (chosen.rows, 0)
    assert not found.is_worse


def test_studies_of_halves_are_compared_on_rows_that_neither_was_chosen_on(
    result: SearchResult, tmp_path: Path
) -> None:
    weak = run(tmp_path, TextEngine(lambda params: 0.3 * temperature_near(0.7)(params)), holdout="cross", n_trials=12)

    found = compare_studies([result, weak])

    if found.part == "holdout":
        assert set(found.rows) <= unseen(result)
    assert len(found.rows) >= 2


def test_winners_of_different_halves_are_compared_on_all_rows(result: SearchResult, tmp_path: Path) -> None:
    other = run(tmp_path, TextEngine(temperature_near(1.1)), study_name="warm", holdout="cross", n_trials=12)
    assert half_of(other.best_trial) == 1 - half_of(result.best_trial)

    found = compare_studies([result, other])

    assert (found.part, len(found.rows)) == ("halves", 40)
    for study in found.studies:
        assert study.winners == study.result.looks[-1].winners
        for half, winner in enumerate(study.winners):
            judged = study.result.row_scores(winner, "holdout")
            assert {row: study.scores[row] for row in study.result.halves[1 - half]} == judged
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(found.mean(found.studies[1]) - found.mean(found.studies[0]))
    page = render_comparison(found).split("<script>")[0]
    assert "The winners of both halves of each, on 40 rows, each with the winner that was not chosen on it" in page
    out = StringIO()
    print_comparison(found, console=Console(file=out, width=100))
    assert "winners of" in out.getvalue()


def test_the_report_says_of_which_rows_a_score_is(result: SearchResult) -> None:
    data = collect(result)
    page = render(data).split("<script>")[0]

    assert data.halves
    assert "the winners of two halves, each on rows that it was not chosen on" in page
    assert "Trials take turns on two halves of the rows" in page
    assert "rows that no trial saw" not in page
    assert {example.row for example in data.examples} == unseen(result)
    assert data.examples_from == "the rows that it was not chosen on"
    assert sum(data.importances.values()) == pytest.approx(1.0) or data.importances == {}


def test_the_terminal_compares_scores_of_the_same_rows(result: SearchResult, tmp_path: Path) -> None:
    out = StringIO()
    print_outcome(result, report=tmp_path / "report.html", console=Console(file=out, width=100))

    half = half_of(result.best_trial)
    baseline = result.score_on(result.trials[0], half)
    assert baseline is not None
    assert baseline != result.trials[0].value
    text = out.getvalue()
    assert f"{baseline:.4f}" in text
    assert "both winners" in text
    assert "holdout" not in text


def test_evidence_and_status_read_a_study_of_halves(result: SearchResult, tmp_path: Path) -> None:
    save_generation_config(result, tmp_path)

    evidence = (tmp_path / "evidence.json").read_text()
    assert '"is_chosen": true' in evidence
    assert read_status(result.opened, 12).running == ()
    assert UNSEEN_LEVEL < 0.05
