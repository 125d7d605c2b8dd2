"""Which trial comes next, and when there is none any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import SearchResult
from tests.optimize.studies import Interrupting, run, signature
from tests.synthetic import ShuffledServer, TextEngine, dataset


def test_greedy_is_the_second_trial_where_the_baseline_samples(tmp_path: Path) -> None:
    result = run(tmp_path, baseline={"do_sample": True, "temperature": 1.9, "repetition_penalty": 1.2}, n_trials=3)
    assert [t.user_attrs["role"] for t in result.trials] == ["baseline", "greedy", "searched"]
    assert result.trial_params(1) == {"max_new_tokens": 20, "repetition_penalty": 1.2}
    assert [t.state for t in result.trials[:2]] == [TrialState.COMPLETE] * 2


def test_trials_in_flight_are_part_of_the_study(tmp_path: Path, whole: SearchResult) -> None:
    one = run(tmp_path, trials_in_flight=1)
    shuffled = run(tmp_path, ShuffledServer(TextEngine(), 1), name="t", trials_in_flight=1)
    assert signature(one)[0] == signature(shuffled)[0]
    assert signature(one) != signature(whole)


def test_more_trials_may_be_asked_for_later(tmp_path: Path) -> None:
    short = run(tmp_path, n_trials=6)
    longer = run(tmp_path, n_trials=10)
    at_once = run(tmp_path, name="once")
    assert signature(longer)[0] == signature(at_once)[0]
    assert len(short.trials) == 6
    assert longer.looks[-1].trials == 10
    assert longer.looks[-1].selection == at_once.looks[-1].selection


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
