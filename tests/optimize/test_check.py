"""The settings in use, scored again: quiet where nothing changed, an alarm where a change costs."""

from __future__ import annotations

import pytest

from llmsearch_optuna.api import check
from llmsearch_optuna.errors import InputError
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric, temperature_near

ASKED = {"metric": number_metric}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp("check"), dataset=dataset(80), n_trials=8)


def test_an_engine_that_decodes_as_before_is_no_worse(result):
    engine = TextEngine()
    found = check(result, engine, dataset(80), **ASKED)
    assert (found.is_worse, found.found.changed, found.found.loss) == (False, 0, 0.0)
    assert found.params == result.recommended_params
    assert found.found.then == pytest.approx(result.verdict.winner_mean)
    assert len(engine.calls) == found.found.rows * result.verdict.winner_replicates
    assert found.sentence.startswith("No evidence of a loss: ")
    assert "would raise a false alarm in 0.0% of cases" in found.sentence


def test_an_engine_that_got_worse_raises_the_alarm_above_the_margin(result):
    worse = TextEngine(temperature_near(3.0))
    found = check(result, worse, dataset(80), **ASKED)
    assert found.is_worse
    assert found.sentence.startswith("Worse: ")
    lost = found.found.loss
    assert lost == pytest.approx(found.found.then - found.found.now)
    assert not check(result, worse, dataset(80), **ASKED, margin=lost + 0.01).is_worse


def test_the_baseline_is_checked_where_it_stays_recommended(tmp_path):
    result = run(tmp_path, TextEngine(lambda params: 0.5), dataset=dataset(60), n_trials=4)
    assert not result.verdict.recommends_winner
    found = check(result, TextEngine(lambda params: 0.5), dataset(60), **ASKED)
    assert found.params == result.baseline_params
    assert not found.is_worse


def test_a_negative_margin_is_refused(result):
    with pytest.raises(InputError, match="margin=-1 must be a number from 0 on"):
        check(result, TextEngine(), dataset(80), **ASKED, margin=-1)
