"""Two halves of the rows are searched apart, and judge each other's winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from llmsearch_optuna.api import forecast
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.progress import VerdictStarted
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage.trials import half_of
from tests.optimize.studies import Recorder, interrupted_until_it_ends, run, signature
from tests.synthetic import TextEngine, dataset, number_metric, unit


def crossed(folder: Path, engine: Any = None, **changed: Any) -> SearchResult:
    return run(folder, engine, **({"holdout": "cross", "n_trials": 12} | changed))


class Elsewhere(TextEngine):
    """Scores the rows of one half in another way."""

    def __init__(self, rows: Sequence[int], *, seed: int) -> None:
        super().__init__()
        self._prompts = {f"row {row}" for row in rows}
        self._seed = seed

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        if prompt not in self._prompts:
            return super().complete(prompt, params)
        return Completion(f"{unit(self._seed, prompt, sorted(map(str, params.items()))):.6f}", (1,), "eos", 1)


def decoded(result: SearchResult, half: int) -> list[Any]:
    """All that the trials of a half are, and what they scored."""
    return [
        (t.number, t.state, t.value, t.params, t.intermediate_values, result.row_scores(t.number))
        for t in result.trials
        if half_of(t) == half
    ]


def test_a_trial_decodes_the_rows_of_its_half_alone(tmp_path: Path) -> None:
    result = crossed(tmp_path)

    first, second = map(set, result.halves)
    assert first | second == set(range(40))
    assert not first & second
    assert [half_of(t) for t in result.trials] == [None] + [0, 1] * 5 + [0]
    assert len(result.row_scores(0)) == 40
    assert result.trials_dataframe()["half"].tolist()[1:] == [0, 1] * 5 + [0]
    for trial in result.trials[1:]:
        rows = {r.row for r in result.opened.records.rows("search", trial.number)}
        assert rows <= (first, second)[half_of(trial) or 0]
        assert len(result.row_scores(trial.number)) == int(trial.user_attrs["rows"].split()[0])


@pytest.mark.parametrize("half", [0, 1])
def test_a_half_is_the_same_whatever_the_other_one_scores(tmp_path: Path, half: int) -> None:
    plain = crossed(tmp_path, name="plain", n_trials=24)

    found = [
        crossed(tmp_path, Elsewhere(plain.halves[1 - half], seed=seed), name=f"seed {seed}", n_trials=24)
        for seed in (1, 2)
    ]

    others = [decoded(result, 1 - half) for result in found]
    assert others[0] != others[1], "the other half was changed"
    assert decoded(found[0], half) == decoded(found[1], half) == decoded(plain, half)
    assert len({result.looks[0].winners[half] for result in (plain, *found)}) == 1
    assert any(t.state is TrialState.PRUNED for t in plain.trials if half_of(t) == half), "pruning takes part"


def test_rows_with_the_same_prompt_are_in_the_same_half(tmp_path: Path) -> None:
    rows = [row for row in dataset(20) for _ in range(2)]

    result = crossed(tmp_path, dataset=rows)

    prompts = [{result.items[row].prompt for row in half} for half in result.halves]
    assert not prompts[0] & prompts[1]
    assert sorted(map(len, prompts)) == [10, 10]


def test_each_winner_is_judged_on_the_half_that_did_not_choose_it(tmp_path: Path) -> None:
    result = crossed(tmp_path)

    look, verdict = result.looks[0], result.verdict
    assert verdict is not None
    assert look.halves is not None
    assert result.row_scores(0, "holdout").keys() == set(range(40))
    for half, (winner, outcome) in enumerate(zip(look.winners, verdict.halves, strict=True)):
        judged, baseline = result.row_scores(winner, "holdout"), result.row_scores(0, "holdout")
        assert set(judged) == set(result.halves[1 - half])
        assert outcome.trial == winner
        assert outcome.rows == len(judged)
        expected = sum(judged[row] - baseline[row] for row in judged) / len(judged)
        assert outcome.difference == pytest.approx(expected)
    pooled = sum(outcome.rows * outcome.difference for outcome in verdict.halves) / 40
    assert verdict.difference == pytest.approx(pooled)
    assert verdict.rows == 40
    assert verdict.confidence == pytest.approx(0.95)


def test_the_better_one_of_the_two_winners_is_recommended(tmp_path: Path) -> None:
    result = crossed(tmp_path)

    verdict = result.verdict
    assert verdict is not None
    assert verdict.answer == "better"
    (chosen,) = [half for half in verdict.halves if half.is_chosen]
    assert result.best_trial.number == chosen.trial == result.looks[0].winner
    assert result.recommended_params == result.trials[chosen.trial].user_attrs["params"]
    assert chosen.overall == max(half.overall for half in verdict.halves)
    assert result.selection is not None
    assert result.selection.winner == chosen.trial


def test_the_words_say_what_was_done(tmp_path: Path) -> None:
    recorder = Recorder()

    result = crossed(tmp_path, callbacks=[recorder])

    verdict = result.verdict
    assert verdict is not None
    assert "on 40 rows, none seen by its winner." in verdict.headline
    assert len(verdict.headline.split()) <= 20
    assert "its winner judged on the other half" in verdict.notes
    assert "is recommended" in verdict.notes
    assert "held-out" not in verdict.sentence
    assert "holdout" not in result.summary
    assert "the half of the rows that it was searched on" in result.summary
    (started,) = [event for event in recorder.events if isinstance(event, VerdictStarted)]
    assert (started.rows, started.halves) == (40, True)
    assert "two halves of 20 and 20" in str(result.settings["split_note"])


def test_the_baseline_is_not_decoded_again_for_the_verdict(tmp_path: Path) -> None:
    engine = TextEngine()

    result = crossed(tmp_path, engine, baseline={"do_sample": True, "temperature": 1.4, "max_new_tokens": 20})

    number = len(result.opened.records.rows("finalists", 0))
    fingerprint = result.trials[0].user_attrs["fingerprint"]
    assert number == 3 * 40
    assert sum(1 for _, params in engine.calls if params == fingerprint) <= 40 + number
    stored = {(r.row, r.replicate): r.text for r in result.opened.records.rows("holdout", 0)}
    assert stored == {(r.row, r.replicate): r.text for r in result.opened.records.rows("finalists", 0)}


def test_an_interrupted_study_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = crossed(tmp_path, name="whole")
    result, times = interrupted_until_it_ends(lambda engine: crossed(tmp_path, engine, name="broken"), every=9)

    assert times > 3
    assert signature(result) == signature(whole)
    assert signature(load_result(f"sqlite:///{tmp_path}/broken.db")) == signature(whole)


def test_more_trials_keep_the_look_where_both_winners_stay(tmp_path: Path) -> None:
    before = crossed(tmp_path, n_trials=12)

    after = crossed(tmp_path, n_trials=14, sampler="tpe")

    assert after.looks[-1].trials == 14
    same = after.looks[-1].winners == before.looks[-1].winners
    assert (len(after.looks) == 1) == same
    assert after.looks[-1].winner in after.looks[-1].winners


def test_where_the_baseline_wins_both_halves_nothing_is_judged(tmp_path: Path) -> None:
    engine = TextEngine(lambda params: 0.0 if params.get("do_sample") else 1.0)

    result = crossed(tmp_path, engine)

    verdict = result.verdict
    assert verdict is not None
    assert result.best_trial.number == 0
    assert "won the search on both halves" in verdict.sentence
    assert result.opened.records.all_rows("holdout") == {}


def test_a_grid_is_gone_through_in_each_half(tmp_path: Path) -> None:
    space = {"max_new_tokens": 20, "do_sample": True, "temperature": CategoricalDistribution([0.5, 0.7, 0.9])}

    result = crossed(tmp_path, space=space, sampler="grid", n_trials=None)

    assert len(result.trials) == 1 + 2 * 3
    for half in (0, 1):
        tried = {t.user_attrs["params"]["temperature"] for t in result.trials if half_of(t) == half}
        assert tried == {0.5, 0.7, 0.9}


def test_named_baselines_and_what_is_tried_first_are_run_on_all_rows(tmp_path: Path) -> None:
    named = {"warm": {"do_sample": True, "temperature": 1.2}, "cold": {"do_sample": True, "temperature": 0.2}}

    result = crossed(
        tmp_path, baselines=named, verdict_against="all", try_first=[{"do_sample": True, "temperature": 0.9}]
    )

    everywhere = [t.number for t in result.trials if half_of(t) is None]
    assert len(everywhere) == 4
    assert all(len(result.row_scores(number)) == 40 for number in everywhere)
    verdict = result.verdict
    assert verdict is not None
    assert {other.name for other in verdict.baselines} == {"baseline", "warm", "cold"}
    cold = next(other for other in verdict.baselines if other.name == "cold")
    ours = {w: result.row_scores(w, "holdout") for w in result.looks[0].winners}
    theirs, total = result.row_scores(cold.trial, "holdout"), 0.0
    for half, winner in enumerate(result.looks[0].winners):
        total += sum(ours[winner][row] - theirs[row] for row in result.halves[1 - half])
    assert cold.difference == pytest.approx(total / 40)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dataset": dataset(11)}, "12 are the least"),
        ({"margin": 0.1}, "margin=0.1"),
        ({"folds": 2}, "folds=2"),
        ({"objectives": ("score", "tokens")}, "objectives="),
        ({"constraints": {"tokens": "<= 5"}}, "constraints="),
        ({"sampler": optuna.samplers.RandomSampler()}, "both halves"),
        ({"pruner": optuna.pruners.MedianPruner()}, "both halves"),
        ({"holdout": "crossed"}, "crossed"),
    ],
)
def test_what_has_not_been_shown_to_work_is_refused_before_anything_is_decoded(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    engine = TextEngine()

    with pytest.raises(InputError, match=words):
        crossed(tmp_path, engine, **changed)

    assert engine.calls == []


def test_a_forecast_counts_half_of_the_rows_a_trial(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"metric": number_metric, "n_trials": 41, "pruner": "none"}
    space = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": FloatDistribution(1.0, 1.3)}

    found = forecast(TextEngine(), dataset(40), space, holdout="cross", **arguments)

    # the baseline on 40 rows, 40 trials on 20, and both winners on the other half
    assert found.rows.high == 40 + 40 * 20 + 40
    assert found.power is not None
    assert "On 40 rows, decoded" in found.power
