"""A search from its arguments to its verdict."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from llmsearch_optuna import progress
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.task.split import assign_folds
from tests.optimize.studies import SAMPLING, Interrupting, Recorder, run, signature
from tests.synthetic import TextEngine, dataset, number_metric


def test_a_search_finds_what_is_good_and_says_so(whole: SearchResult) -> None:
    assert len(whole.trials) == 10
    baseline = whole.trials[0]
    assert baseline.user_attrs["role"] == "baseline"
    assert baseline.state is TrialState.COMPLETE
    assert baseline.params == {"branch": whole.study.best_trials[0].distributions["branch"].choices[0]}, "TPE learns"
    assert whole.best_trial.value is not None
    assert baseline.value is not None
    assert whole.best_trial.value > baseline.value
    assert abs(whole.best_params["temperature"] - 0.7) < 0.5
    assert whole.verdict is not None
    assert whole.verdict.answer == "better"
    assert whole.recommended_params == whole.best_params
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_an_interrupted_study_equals_one_that_was_not(tmp_path: Path) -> None:
    reference = run(tmp_path, Interrupting(), name="whole", n_trials=6)
    engine = Interrupting()
    engine.every = 5
    said: list[str] = []
    while True:
        try:
            result = run(tmp_path, engine, n_trials=6)
            break
        except StudyInterrupted as interrupted:
            said.append(str(interrupted))
    assert len(said) >= 3
    assert all("Run the same command again" in line for line in said)
    assert signature(result) == signature(reference)
    assert len(set(engine.calls)) == len(engine.calls), "a row was decoded twice"


def test_a_finished_study_is_read_not_decoded(tmp_path: Path) -> None:
    first = run(tmp_path)
    engine = TextEngine()
    again = run(tmp_path, engine)
    assert engine.calls == []
    assert signature(again) == signature(first)


def test_a_second_look_is_counted(tmp_path: Path) -> None:
    first = run(tmp_path, n_trials=3, seed=2)
    assert first.verdict is not None
    later = run(tmp_path, n_trials=12, seed=2)
    assert later.verdict is not None
    assert later.best_trial.number != first.best_trial.number
    assert [look.look for look in later.looks] == [1, 2]
    assert later.verdict.look == 2


def test_the_winner_is_stored_before_the_holdout_is_touched(tmp_path: Path) -> None:
    class Curious(TextEngine):
        """Ctrl-C comes at the first prompt that the search did not show."""

        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
            if self.seen is not None and set(prompts) & self.seen:
                raise KeyboardInterrupt
            return super().generate(prompts, params)

        seen: set[str] | None = None

    whole = run(tmp_path, Curious(), name="whole")
    held = {item.prompt for item in whole.items.values() if item.part == "holdout"}
    assert len(held) == 12
    engine = Curious()
    engine.seen = held
    with pytest.raises(StudyInterrupted):
        run(tmp_path, engine)
    from llmsearch_optuna.search_result import load_result

    stopped = load_result(f"{tmp_path}/s.db")
    (look,) = stopped.looks
    assert look.verdict is None
    assert look.winner == whole.best_trial.number
    assert stopped.verdict is None
    assert stopped.recommended_params == stopped.baseline_params
    engine.seen = None
    assert signature(run(tmp_path, engine)) == signature(whole)


def test_the_holdout_is_seen_by_nobody_but_winner_and_baseline(whole: SearchResult) -> None:
    assert set(whole.opened.records.all_rows("holdout")) == {0, whole.best_trial.number}
    searched = {r.row for records in whole.opened.records.all_rows("search").values() for r in records}
    held = {row for row, item in whole.items.items() if item.part == "holdout"}
    assert not searched & held
    assert len(searched) + len(held) == 40


def test_too_few_rows_have_no_holdout_and_no_verdict(tmp_path: Path) -> None:
    result = run(tmp_path, dataset=dataset(12), n_trials=4)
    assert result.verdict is not None
    assert result.verdict.answer == "no evidence"
    assert result.recommended_params == result.baseline_params
    assert result.opened.records.all_rows("holdout") == {}


def test_the_baseline_may_win(tmp_path: Path) -> None:
    result = run(tmp_path, TextEngine(lambda params: 0.0 if params.get("do_sample") else 1.0), n_trials=5)
    assert result.best_trial.number == 0
    assert result.verdict is not None
    assert "baseline itself won" in result.verdict.sentence
    assert result.opened.records.all_rows("holdout") == {}


def test_minimizing_and_a_corpus_metric(tmp_path: Path) -> None:
    def loss(predictions: Sequence[str], references: Sequence[Any]) -> float:
        return 1.0 - sum(number_metric(predictions, references)) / len(predictions)

    result = run(tmp_path, metric=loss, direction="minimize")
    assert result.best_score < (result.trials[0].value or 0.0)
    assert result.verdict is not None
    assert result.verdict.answer == "better"
    assert result.row_scores(0) == {}


def _corpus_mean(predictions: Sequence[str], references: Sequence[Any]) -> float:
    return sum(number_metric(predictions, references)) / len(predictions)


def test_a_corpus_metric_is_chosen_by_and_tells_its_error_as_one_by_row_does(tmp_path: Path) -> None:
    whole = run(tmp_path, metric=_corpus_mean, name="corpus", pruner="none")
    by_row = run(tmp_path, name="rows", pruner="none")
    assert whole.selection is not None
    assert by_row.selection is not None
    assert whole.selection.winner == by_row.selection.winner
    for one, other in zip(whole.selection.finalists, by_row.selection.finalists, strict=True):
        assert (one.mean, one.shrunken, one.error) == pytest.approx((other.mean, other.shrunken, other.error))
    assert whole.best_score_error == pytest.approx(by_row.best_score_error)
    assert whole.best_score_error
    assert whole.power is not None
    assert "held-out rows" in whole.power


def test_a_corpus_metric_that_fails_on_parts_still_ends_with_a_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = dataset(60)

    def only_whole(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float:
        if len({row["prompt"] for row in rows}) < len(rows) or len(rows) == 41:
            raise ValueError("rows are missing")
        return _corpus_mean(predictions, references)

    result = run(tmp_path, metric=only_whole, dataset=rows, pruner="none")
    assert result.best_score_error is None
    assert "without the error of their scores" in caplog.text
    assert result.verdict is not None
    assert result.verdict.answer == "better"
    assert result.verdict.high is None


def test_power_counts_different_prompts(tmp_path: Path) -> None:
    twice = [row for row in dataset(40) for _ in range(2)]
    result = run(tmp_path, dataset=twice, n_trials=3)
    assert result.power is not None
    assert "24 held-out rows with 12 different prompts" in result.power


def test_replicates_draw_fresh_noise(tmp_path: Path) -> None:
    engine = TextEngine()
    result = run(tmp_path, engine, replicates=2, n_trials=4, trials_in_flight=2)
    assert len(set(engine.calls)) == len(engine.calls)
    sampled = next(t.number for t in result.trials if t.user_attrs["kind"] == "sampling")
    scores = {(r.row, r.replicate): r.score for r in result.records(sampled)}
    row = next(iter(scores))[0]
    assert scores[row, 0] != scores[row, 1]
    assert {r.replicate for r in result.records(0)} == {0}


def test_folds_show_how_far_scores_depend_on_the_rows(tmp_path: Path, whole: SearchResult) -> None:
    rows = [*dataset(30), *dataset(10)]  # some prompts twice
    result = run(tmp_path, dataset=rows, folds=4, n_trials=5)
    prompts = {item.row: item.prompt for item in result.items.values()}
    folds = dict(zip(*_folds(result, prompts), strict=True))
    for trial in result.trials:
        if trial.state is not TrialState.COMPLETE:
            continue
        scores = result.row_scores(trial.number)
        groups = [[s for row, s in scores.items() if folds[prompts[row]] == fold] for fold in range(4)]
        assert trial.user_attrs["fold_scores"] == pytest.approx([sum(g) / len(g) for g in groups])
        line = result.trials_dataframe().iloc[trial.number]
        assert [line[f"fold_{n}"] for n in range(4)] == trial.user_attrs["fold_scores"]
    with pytest.raises(StudyError, match="folds: 4 -> 5"):
        run(tmp_path, dataset=rows, folds=5, n_trials=5)
    assert "fold_0" not in whole.trials_dataframe()


def _folds(result: SearchResult, prompts: Mapping[int, str]) -> tuple[list[str], tuple[int, ...]]:
    order = [prompts[row] for row in result.row_scores(0)]
    return order, assign_folds(order, 4, 42)


def test_a_combination_that_is_refused_fails_its_trial_only(tmp_path: Path) -> None:
    refusing = [
        {"max_new_tokens": 20},
        {"max_new_tokens": 20, "exponential_decay_length_penalty": (2, 1.5)},
        SAMPLING,
    ]
    result = run(tmp_path, space=refusing, n_trials=12, sampler="random")
    failed = [t for t in result.trials if t.state is TrialState.FAIL]
    assert len(failed) == 1
    assert "eos_token_id" in failed[0].user_attrs["fail_reason"]
    assert result.verdict is not None


def test_a_metric_that_fails_on_some_texts_costs_those_trials(tmp_path: Path) -> None:
    def fragile(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        if any(p.endswith("7") for p in predictions):
            raise ValueError("no sevens")
        return number_metric(predictions, references)

    result = run(tmp_path, metric=fragile, n_trials=6)
    failed = [t for t in result.trials if t.state is TrialState.FAIL]
    assert failed
    assert all("no sevens on row" in t.user_attrs["fail_reason"] for t in failed)
    assert "no trial of 6 is complete" in result.summary or result.verdict is not None


def test_a_study_of_something_else_is_refused_with_what_changed(tmp_path: Path) -> None:
    run(tmp_path, n_trials=2)
    with pytest.raises(StudyError) as caught:
        run(tmp_path, n_trials=2, seed=7, space=SAMPLING, dataset=dataset(41))
    said = str(caught.value)
    for name in ("seed: 42 -> 7", "space.branches", "data.rows: 40 -> 41", "data.prompts"):
        assert name in said
    assert len(run(tmp_path, n_trials=3).trials) == 3


def test_a_users_own_sampler_and_pruner_are_used_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        result = run(
            tmp_path,
            sampler=optuna.samplers.RandomSampler(seed=3),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=8),
            n_trials=12,
        )
    assert len([r for r in caplog.records if "is used as it is" in r.message]) == 1
    assert len(result.trials) == 12
    assert all("params" in t.user_attrs for t in result.trials)
    assert any("MedianPruner" in t.user_attrs.get("prune_reason", "") for t in result.trials)


def test_a_function_may_be_the_space(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.suggest_categorical("how", ["greedy", "sample"]) == "greedy":
            return {"max_new_tokens": 20}
        return {"max_new_tokens": 20, "do_sample": True, "temperature": trial.suggest_float("temperature", 0.1, 2.0)}

    assert signature(run(tmp_path, space=space)) == signature(run(tmp_path, space=space, name="again"))


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"max_tokens": 1.5}, {"timeout": -1.0}])
def test_budgets_are_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}=.* must be"):
        run(tmp_path, **wrong)


def test_an_observer_hears_the_whole_story(tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(tmp_path, observer=recorder)
    first, *_, last = recorder.events
    assert isinstance(first, progress.StudyStarted)
    assert (first.n_trials, first.finished_trials, first.rows) == (10, 0, 28)
    assert isinstance(last, progress.StudyEnded)
    assert last.result_summary == result.summary
    ends = [e for e in recorder.events if isinstance(e, progress.TrialEnded)]
    assert sorted(e.number for e in ends) == list(range(10))
    assert [e for e in recorder.events if isinstance(e, progress.VerdictStarted)]
    assert any(e.is_best for e in ends)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"trials_in_flight": 0}, "trials_in_flight=0"),
        ({"sampler": "cma"}, "sampler='cma'"),
        ({"pruner": "median"}, "pruner='median'"),
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"space": {"temprature": 0.7, "max_new_tokens": 8}}, "temperature"),
        ({"space": {"temperature": FloatDistribution(0.1, 1.0)}}, "max_new_tokens"),
        ({"dataset": []}, "empty"),
        ({"metric": "rouge9"}, "rouge9"),
        ({"metric": None}, "metric= is missing"),
        ({"reference": "summary"}, "summary"),
        ({"model": 7}, "model=7"),
        ({"sampler": "grid"}, "temperature"),
    ],
)
def test_bad_input_is_refused_before_anything_is_decoded(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    engine = TextEngine()
    with pytest.raises(InputError, match=re.escape(said)):
        run(tmp_path, engine, **({"model": engine} | changed))
    assert engine.calls == []
    assert not (tmp_path / "s.db").exists()


def test_an_engine_may_have_defaults(tmp_path: Path) -> None:
    class Configured(TextEngine):
        default_params = {"do_sample": True, "temperature": 0.3, "eos_token_id": 5}  # noqa: RUF012

    result = run(tmp_path, Configured(), n_trials=2)
    assert result.baseline_params == {
        "do_sample": True, "temperature": 0.3, "eos_token_id": [5], "max_new_tokens": 20, "top_k": 50
    }  # fmt: skip
    assert GenerationParams.of(result.trial_params(1)).kind == "greedy"
