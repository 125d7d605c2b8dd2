from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import progress
from llmsearch_optuna.api import score, search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.task.split import assign_folds
from tests.synthetic import ShuffledServer, TextEngine, dataset, number_metric

SAMPLING = {
    "max_new_tokens": 20,
    "do_sample": True,
    "temperature": FloatDistribution(0.1, 2.0),
    "top_p": FloatDistribution(0.5, 1.0, step=0.1),
}
SPACE = [{"max_new_tokens": 20}, SAMPLING]


def run(folder: Path, engine: Any = None, *, name: str = "s", **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {
        "model": engine or TextEngine(),
        "dataset": dataset(40),
        "space": SPACE,
        "metric": number_metric,
        "n_trials": 10,
        "storage": f"sqlite:///{folder}/{name}.db",
        "study_name": "study",
        "progress": False,
    } | changed
    return search(**arguments)


def signature(result: SearchResult) -> list[Any]:
    """Everything that a study is, but for times."""
    trials = [
        (
            t.number,
            t.state,
            t.value,
            t.params,
            t.intermediate_values,
            {k: v for k, v in t.user_attrs.items() if k not in ("seconds", "engine", "memory", "gpu_memory")},
            result.row_scores(t.number),
        )
        for t in result.trials
    ]
    return [trials, [(look.winner, look.trials, look.selection, look.verdict) for look in result.looks]]


class Interrupting(TextEngine):
    """Ctrl-C comes at every n-th call."""

    every = 0

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self.every_calls = getattr(self, "every_calls", 0) + 1
        if self.every and self.every_calls % self.every == 0:
            raise KeyboardInterrupt
        return super().generate(prompts, params)


class Recorder:
    def __init__(self) -> None:
        self.events: list[progress.Event] = []

    def on(self, event: progress.Event) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(tmp_path_factory.mktemp("whole"))


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


def test_greedy_is_the_second_trial_where_the_baseline_samples(tmp_path: Path) -> None:
    result = run(tmp_path, baseline={"do_sample": True, "temperature": 1.9, "repetition_penalty": 1.2}, n_trials=3)
    assert [t.user_attrs["role"] for t in result.trials] == ["baseline", "greedy", "searched"]
    assert result.trial_params(1) == {"max_new_tokens": 20, "repetition_penalty": 1.2}
    assert [t.state for t in result.trials[:2]] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("seed", range(2))
def test_a_study_does_not_depend_on_which_row_ends_first(tmp_path: Path, whole: SearchResult, seed: int) -> None:
    class Named(ShuffledServer):
        description = {"engine": "TextEngine"}  # noqa: RUF012
        name = "TextEngine"

    assert signature(run(tmp_path, Named(TextEngine(), seed))) == signature(whole)


def test_trials_in_flight_are_part_of_the_study(tmp_path: Path, whole: SearchResult) -> None:
    one = run(tmp_path, trials_in_flight=1)
    shuffled = run(tmp_path, ShuffledServer(TextEngine(), 1), name="t", trials_in_flight=1)
    assert signature(one)[0] == signature(shuffled)[0]
    assert signature(one) != signature(whole)


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


def test_more_trials_may_be_asked_for_later(tmp_path: Path) -> None:
    short = run(tmp_path, n_trials=6)
    longer = run(tmp_path, n_trials=10)
    at_once = run(tmp_path, name="once")
    assert signature(longer)[0] == signature(at_once)[0]
    assert len(short.trials) == 6
    assert longer.looks[-1].trials == 10
    assert longer.looks[-1].selection == at_once.looks[-1].selection


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


def test_known_configurations_are_not_decoded_twice(tmp_path: Path) -> None:
    engine = TextEngine()
    space = {"max_new_tokens": 20, "do_sample": True, "top_p": CategoricalDistribution([0.5, 0.7, 0.9])}
    result = run(tmp_path, engine, space=space, baseline={"do_sample": False}, n_trials=30)
    assert len(result.trials) == 4
    assert len({t.user_attrs["fingerprint"] for t in result.trials}) == 4


def test_an_exhausted_space_ends_early_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = {"max_new_tokens": 20, "num_beams": CategoricalDistribution([1, 2, 3])}
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        for sampler in ("grid", "random"):
            assert len(run(tmp_path, space=space, sampler=sampler, name=sampler).trials) == 3
    assert "ends after 3 of 10 trials" in caplog.text


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


def test_a_users_own_sampler_repeats_itself_without_decoding(tmp_path: Path) -> None:
    engine = TextEngine()
    space = {"max_new_tokens": 20, "num_beams": CategoricalDistribution([1, 2])}
    result = run(
        tmp_path,
        engine,
        space=space,
        sampler=optuna.samplers.RandomSampler(seed=3),
        n_trials=8,
        holdout=0.0,
        trials_in_flight=1,
    )
    assert len(result.trials) == 8
    assert len(engine.calls) == 80
    assert len({t.value for t in result.trials}) == 2


def test_a_function_may_be_the_space(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.suggest_categorical("how", ["greedy", "sample"]) == "greedy":
            return {"max_new_tokens": 20}
        return {"max_new_tokens": 20, "do_sample": True, "temperature": trial.suggest_float("temperature", 0.1, 2.0)}

    assert signature(run(tmp_path, space=space)) == signature(run(tmp_path, space=space, name="again"))


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


def tokens_of(trials: Sequence[optuna.trial.FrozenTrial]) -> int:
    return sum(t.user_attrs["tokens"] for t in trials)


def test_tokens_may_be_limited(tmp_path: Path, whole: SearchResult, caplog: pytest.LogCaptureFixture) -> None:
    budget = tokens_of(whole.trials[:6])
    with caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        result = run(tmp_path, max_tokens=budget)
    done = len(result.trials)
    assert 4 <= done < 10
    assert signature(result)[0] == signature(whole)[0][:done]
    assert tokens_of(result.trials) < budget + 2 * max(t.user_attrs["tokens"] for t in result.trials)
    assert result.verdict is not None
    assert f"max_tokens={budget} leaves no room for another trial: the study ends after {done} of 10" in caplog.text
    counted = sum(len(r.token_ids) for t in result.trials for r in result.records(t.number))
    assert counted == tokens_of(result.trials)


class Even(TextEngine):
    """Every row takes ten tokens."""

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        return Completion(super().complete(prompt, params).text, tuple(range(10)))


@pytest.mark.parametrize(
    ("trials_in_flight", "budget", "expected"),
    [(1, 1000, 3), (1, 1199, 3), (1, 1200, 4), (1, 100, 1), (4, 1499, 4), (4, 1500, 5), (4, 100, 4)],
)
def test_a_trial_that_would_not_fit_is_not_begun(
    tmp_path: Path, trials_in_flight: int, budget: int, expected: int
) -> None:
    result = run(
        tmp_path,
        Even(),
        dataset=dataset(30),
        holdout=0.0,
        pruner="none",
        trials_in_flight=trials_in_flight,
        max_tokens=budget,
    )
    assert [t.user_attrs["tokens"] for t in result.trials] == [300] * expected


def test_a_limit_of_tokens_holds_across_interruptions_and_in_any_order(tmp_path: Path, whole: SearchResult) -> None:
    budget = tokens_of(whole.trials[:6])
    reference = run(tmp_path, max_tokens=budget)
    engine = Interrupting()
    engine.every = 7
    interruptions = 0
    while True:
        try:
            result = run(tmp_path, engine, name="resumed", max_tokens=budget)
            break
        except StudyInterrupted:
            interruptions += 1
    assert interruptions >= 2
    assert signature(result) == signature(reference)
    assert signature(run(tmp_path, ShuffledServer(TextEngine(), 3), name="shuffled", max_tokens=budget)) == signature(
        reference
    )
    assert signature(run(tmp_path, Interrupting(), name="resumed"))[0] == signature(whole)[0], "the limit may be lifted"


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


def test_score_decodes_every_row_once() -> None:
    engine = TextEngine()
    found = score(engine, dataset(10), {"max_new_tokens": 5}, metric=number_metric)
    assert found.scores == tuple(float(c.text) for c in found.completions)
    assert found.score == pytest.approx(sum(found.scores) / 10)
    assert found.prompts[3] == "row 3"
    assert len(engine.calls) == 10
    assert found.params == {"max_new_tokens": 5}


def test_score_takes_replicates_and_corpus_metrics() -> None:
    params = {"max_new_tokens": 5, "do_sample": True}
    engine = TextEngine()
    three = score(engine, dataset(6), params, metric=number_metric, replicates=3)
    assert len(set(engine.calls)) == 18
    assert len(three.scores) == 6

    def corpus(predictions: Sequence[str], references: Sequence[Any]) -> float:
        return sum(number_metric(predictions, references)) / len(predictions)

    whole = score(TextEngine(), dataset(6), params, metric=corpus, replicates=3)
    assert whole.score == pytest.approx(three.score)
    assert whole.scores == ()


def test_score_needs_max_new_tokens() -> None:
    with pytest.raises(InputError, match="max_new_tokens"):
        score(TextEngine(), dataset(6), {"do_sample": True}, metric=number_metric)


def test_an_engine_may_have_defaults(tmp_path: Path) -> None:
    class Configured(TextEngine):
        default_params = {"do_sample": True, "temperature": 0.3, "eos_token_id": 5}  # noqa: RUF012

    result = run(tmp_path, Configured(), n_trials=2)
    assert result.baseline_params == {
        "do_sample": True, "temperature": 0.3, "eos_token_id": [5], "max_new_tokens": 20, "top_k": 50
    }  # fmt: skip
    assert GenerationParams.of(result.trial_params(1)).kind == "greedy"


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ messages[0].content }}", "User: {{ messages[0].content }}"])
def test_text_from_a_chat_template_gets_no_second_bos(
    template: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("T").input_ids[0] == tokenizer.bos_token_id
    rows = [{"text": "How many apples", "answer": "7"}] * 2
    common: dict[str, Any] = {"prompt": "{text}", "reference": "answer", "metric": "contains"}
    plain = score(Engine(tiny_llama, tokenizer), rows, {"max_new_tokens": 2}, **common)
    assert plain.completions[0].prompt_tokens == len(tokenizer("How many apples").input_ids)
    tokenizer.chat_template = template
    wrapped = score(Engine(tiny_llama, tokenizer), rows, {"max_new_tokens": 2}, **common)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "How many apples"}], tokenize=False)
    assert wrapped.completions[0].prompt_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)
