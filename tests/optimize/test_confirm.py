"""The verdict once more with another engine: the plain loop's numbers, stored, interrupted, gone on with."""

from __future__ import annotations

import pytest

from llmsearch_optuna.api import confirm, search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.confirm import confirmations
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.stats.comparison import compare
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric, temperature_near

ASKED = {"metric": number_metric}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp("confirm"), dataset=dataset(80), n_trials=8)


def test_the_same_engine_gives_the_studys_own_verdict(result):
    found = confirm(result, TextEngine(), dataset(80), **ASKED)
    assert found.holds == result.verdict.recommends_winner
    for name in (
        "answer",
        "difference",
        "low",
        "high",
        "p_value",
        "rows",
        "baseline_mean",
        "winner_mean",
        "detectable",
    ):
        assert getattr(found.here, name) == getattr(found.study, name)


def test_an_engine_that_likes_other_parameters_has_another_verdict(result):
    other = TextEngine(temperature_near(5.0))
    found = confirm(result, other, dataset(80), **ASKED)
    assert found.study.answer == "better"
    assert found.here.answer != "better"
    assert not found.holds
    assert "With TextEngine: " in found.sentence
    # Decoded on the held-out rows, and on no others.
    held_out = {item.prompt for item in result.items.values() if item.part == "holdout"}
    assert {prompt for prompt, _ in other.calls} == held_out


def test_it_compares_what_a_plain_loop_decodes(tmp_path):
    result = run(tmp_path, dataset=dataset(60), n_trials=5, holdout_replicates=1)
    other = TextEngine(temperature_near(0.2))
    found = confirm(result, other, dataset(60), **ASKED)
    rows = [item.row for item in result.items.values() if item.part == "holdout"]
    tables = [
        [float(other.complete(f"row {row}", params).text) for row in rows]
        for params in (result.baseline_params, result.best_params)
    ]
    expected = compare(*tables, bounds=(0.0, 1.0))
    assert found.here.difference == pytest.approx(expected.difference)
    assert found.here.p_value == expected.p_value


class Stopping(TextEngine):
    """Ctrl-C comes in the middle."""

    def complete(self, prompt, params):
        if len(self.calls) > 20:
            raise KeyboardInterrupt
        self.calls.append((prompt, ""))
        return super().complete(prompt, params)


def test_what_was_decoded_before_an_interruption_is_not_decoded_again(tmp_path):
    result = run(tmp_path, dataset=dataset(80), n_trials=6)
    with pytest.raises(StudyInterrupted, match="goes on where it stopped"):
        confirm(result, Named(Stopping()), dataset(80), **ASKED)
    assert confirmations(result.opened) == []
    decoded = sum(len(result.opened.records.rows("confirm", number)) for number in (0, 1))
    assert decoded > 0
    engine = TextEngine()
    found = confirm(load_result(result.opened.url), Named(engine), dataset(80), **ASKED)
    wanted = found.here.rows * (found.here.baseline_replicates + found.here.winner_replicates)
    assert len(engine.calls) == wanted - decoded
    assert [c.here for c in confirmations(result_again(result))] == [found.here]
    # One that has ended begins anew: what serves may have changed.
    fresh = TextEngine()
    confirm(load_result(result.opened.url), Named(fresh), dataset(80), **ASKED)
    assert len(fresh.calls) == wanted


def result_again(result):
    return load_result(result.opened.url).opened


class Named:
    """Engines of one name."""

    name = "served"
    description = {"engine": "served"}  # noqa: RUF012

    def __init__(self, engine):
        self._engine = engine

    def generate(self, prompts, params):
        return self._engine.generate(prompts, params)


@pytest.mark.parametrize(
    ("data", "asked", "message"),
    [
        (dataset(30), ASKED, "the data end after 30 rows"),
        ([{**row, "answer": "other"} for row in dataset(80)], ASKED, "is not what the study"),
        (
            dataset(80),
            {"metric": "exact_match", "reference": "answer"},
            "has metric 'number_metric', not 'exact_match'",
        ),
    ],
)
def test_other_data_and_metrics_are_refused(result, data, asked, message):
    with pytest.raises(InputError, match=message):
        confirm(result, TextEngine(), data, **asked)


def test_a_study_without_a_verdict_is_refused(tmp_path):
    result = run(tmp_path, holdout=0.0, n_trials=3)
    with pytest.raises(StudyError, match="compared nothing on held-out rows"):
        confirm(result, TextEngine(), dataset(40), **ASKED)


def test_a_metric_of_all_rows_is_compared_as_in_the_study(tmp_path):
    def mean_number(predictions, references):
        return sum(number_metric(predictions, references)) / len(predictions)

    result = search(
        TextEngine(),
        dataset(60),
        {"max_new_tokens": 20, "do_sample": True, "temperature": 0.7},
        holdout=0.3,
        metric=mean_number,
        n_trials=3,
        storage=f"sqlite:///{tmp_path}/c.db",
        progress=False,
        baseline={"do_sample": True, "temperature": 1.9},
        holdout_replicates=1,
    )
    found = confirm(result, TextEngine(), dataset(60), metric=mean_number)
    assert found.here.difference == pytest.approx(found.study.difference)
    assert found.here.answer == found.study.answer
