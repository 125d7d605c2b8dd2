from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import GenerationConfig

from llmsearch_optuna.api import search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage import study
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = {
    "max_new_tokens": 20,
    "do_sample": True,
    "temperature": FloatDistribution(0.1, 2.0),
    "stop": ["\n\n"],
    "eos_token_id": [5, 7],
}


class Configured(TextEngine):
    default_params = {"pad_token_id": 3, "eos_token_id": 5}  # noqa: RUF012


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(
        Configured(),
        dataset(40),
        SPACE,
        holdout=0.3,
        reference="answer",
        metric=number_metric,
        baseline={"do_sample": False},
        n_trials=16,
        storage=f"sqlite:///{tmp_path_factory.mktemp('result')}/s.db",
        study_name="study",
        progress=False,
    )


@pytest.fixture(scope="module")
def reread(result: SearchResult) -> SearchResult:
    return load_result(str(result.opened.path))


def test_a_study_is_read_without_model_and_data(result: SearchResult, reread: SearchResult) -> None:
    assert reread.best_params == result.best_params
    assert reread.best_trial.number == result.best_trial.number
    assert reread.verdict == result.verdict
    assert reread.summary == result.summary
    assert reread.settings["metric"] == "number_metric"
    assert reread.completions().equals(result.completions())


def test_best_params_hold_fixed_values_and_defaults(result: SearchResult) -> None:
    assert result.best_params["stop"] == ["\n\n"]
    assert result.best_params["eos_token_id"] == [5, 7]
    assert result.best_params["top_k"] == 50
    assert set(result.baseline_params) == {"max_new_tokens", "stop", "eos_token_id"}


def test_a_winner_that_samples_says_whether_rows_or_replicates_help(result: SearchResult) -> None:
    variance = result.variance
    assert variance is not None
    assert variance.replicates > 1
    assert result.advice == variance.advice
    assert "twice the rows" in result.advice


def test_what_to_expect_is_the_winners_mean_drawn_towards_the_other_finalists(result: SearchResult) -> None:
    assert result.selection is not None
    winner = result.selection.finalists[0]
    assert (result.expected_score, result.best_score_error) == (winner.shrunken, winner.standard_error)
    assert result.expected_score != winner.mean


def test_a_winner_that_does_not_sample_has_nothing_to_advise(result: SearchResult, tmp_path: Path) -> None:
    greedy = search(
        Configured(),
        dataset(40),
        {"max_new_tokens": 20, "repetition_penalty": FloatDistribution(1.0, 1.3)},
        holdout=0.3,
        reference="answer",
        metric=number_metric,
        n_trials=3,
        storage=f"sqlite:///{tmp_path}/s.db",
        study_name="study",
        progress=False,
    )
    assert greedy.variance is not None
    assert greedy.advice is None


def test_completions_are_lines_of_a_table(result: SearchResult) -> None:
    best = result.completions()
    assert len(best) == 28
    assert best["score"].mean() == pytest.approx(result.best_score)
    assert list(best.columns[:6]) == ["row", "replicate", "prompt", "reference", "completion", "score"]
    first = best.iloc[0]
    assert (first["prompt"], first["reference"]) == (f"row {first['row']}", str(first["row"]))
    held = result.completions(0, part="holdout")
    assert len(held) == 12
    assert len(result.completions(part="holdout")) == 36
    with pytest.raises(InputError, match="there is no trial 99"):
        result.completions(99)


def test_a_pruned_trial_shows_the_rows_that_count(result: SearchResult) -> None:
    pruned = next(t for t in result.trials if t.state.name == "PRUNED")
    counted = max(pruned.intermediate_values)
    assert len(result.completions(pruned.number)) == counted
    assert sum(result.row_scores(pruned.number).values()) / counted == pytest.approx(pruned.value)


def test_trials_are_lines_of_a_table(result: SearchResult) -> None:
    table = result.trials_dataframe()
    assert len(table) == 16
    assert table.loc[0, "role"] == "baseline"
    assert set(table["state"]) == {"complete", "pruned"}
    assert table.loc[table["state"] == "pruned", "reason"].str.len().min() > 10
    assert table.loc[3, "params_temperature"] == result.trials[3].user_attrs["params"]["temperature"]


def test_another_metric_on_stored_completions(result: SearchResult, reread: SearchResult) -> None:
    def doubled(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [2 * score for score in number_metric(predictions, references)]

    found = reread.rescore(doubled)
    assert set(found["number"]) == {t.number for t in result.trials if t.state.name == "COMPLETE"}
    assert found["doubled"].tolist() == pytest.approx((2 * found["value"]).tolist())
    assert (reread.rescore("exact_match")["exact_match"] == 0).all()
    with pytest.raises(InputError, match="rouge9"):
        reread.rescore("rouge9")


def test_the_configuration_is_what_plain_generate_applies(result: SearchResult, tmp_path: Path) -> None:
    path = result.save_generation_config(tmp_path / "out")
    loaded = GenerationConfig.from_pretrained(str(tmp_path / "out"))
    assert path == tmp_path / "out" / "generation_config.json"
    assert loaded.temperature == result.best_params["temperature"]
    assert loaded.do_sample is True
    assert loaded.top_k == 50
    assert loaded.eos_token_id == [5, 7]
    assert loaded.pad_token_id == 3
    assert loaded.max_new_tokens == 20
    assert "stop" not in path.read_text()
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert evidence["recommended_params"] == result.best_params
    assert evidence["not_in_generation_config"] == {"stop": ["\n\n"]}
    assert "stop_strings=['\\n\\n'], tokenizer=tokenizer" in evidence["call"]
    assert result.verdict is not None
    assert evidence["verdict"] == json.loads(json.dumps(result.verdict.to_json()))
    assert evidence["study"]["trials"] == 16
    verdict = evidence["verdict"]
    assert verdict["low"] <= verdict["winner_mean"] - verdict["baseline_mean"] <= verdict["high"]
    assert evidence["settings"]["seed"] == 42
    assert evidence["settings"]["rows"] == {"search": len(result.row_scores(0)), "holdout": verdict["rows"]}
    assert {"torch", "transformers", "optuna"} <= set(evidence["versions"])


def test_the_evidence_has_the_versions_that_the_study_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_url = f"sqlite:///{tmp_path}/s.db"
    result = search(
        TextEngine(),
        dataset(24),
        {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        holdout=0.3,
        metric=number_metric,
        n_trials=3,
        storage=storage_url,
        progress=False,
    )
    made_with = study.library_versions()
    monkeypatch.setattr(study, "library_versions", lambda: {"torch": "99.0"})
    result.save_generation_config(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evidence.json").read_text())["versions"] == made_with


def test_without_evidence_the_baseline_is_shipped(tmp_path: Path) -> None:
    result = search(
        TextEngine(lambda params: 1.0 - bool(params.get("do_sample"))),
        dataset(30),
        SPACE,
        holdout=0.3,
        metric=number_metric,
        baseline={"do_sample": False},
        n_trials=3,
        storage=f"sqlite:///{tmp_path}/s.db",
        study_name="study",
        progress=False,
    )
    path = result.save_generation_config(tmp_path)
    assert result.recommended_params == result.baseline_params
    assert "temperature" not in json.loads(path.read_text())


def test_a_report_is_written(result: SearchResult, reread: SearchResult, tmp_path: Path) -> None:
    for number, one in enumerate((result, reread)):
        path = one.save_report(tmp_path / f"{number}.html")
        assert "<html" in path.read_text()


def test_there_must_be_a_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study at"):
        load_result(f"{tmp_path}/none.db")
