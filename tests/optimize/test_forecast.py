"""What a study will take: the arithmetic, the probe, and the forecast of a search."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import progress
from llmsearch_optuna.api import forecast, search
from llmsearch_optuna.declaration import completed
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.forecast import Forecast, Range, make_forecast
from llmsearch_optuna.optimize.prepare import Prepared, prepare
from llmsearch_optuna.optimize.probe import Probe
from llmsearch_optuna.optimize.throughput import Span
from llmsearch_optuna.options import ForecastOptions
from llmsearch_optuna.storage.row_record import RowRecord
from tests.optimize.studies import SPACE, Recorder, run, signature
from tests.synthetic import TextEngine, dataset, number_metric

BEAMS = [{"max_new_tokens": 20}, {"max_new_tokens": 20, "num_beams": IntDistribution(4, 4)}]


def prepared(space: Any = SPACE, **changed: Any) -> Prepared:
    options = completed(ForecastOptions, {"metric": number_metric, "holdout": 0.25} | changed)
    return prepare(TextEngine(), dataset(40), space, None, options)


def probed(tokens: int = 10, prompt_tokens: int = 50, spans: Any = None, cache_bytes: int = 0) -> Probe:
    """Eight rows of ten tokens: a second for all prompts, half a second for the tokens."""
    params = GenerationParams.of({"max_new_tokens": 20})
    records = [RowRecord(row, 0, "x", tuple(range(tokens)), "eos", prompt_tokens) for row in range(8)]
    return Probe({params: records}, spans or [Span(0, 400, 0, 0, 1.0), Span(8, 0, 80, 80, 0.5)], cache_bytes)


def of(probe: Probe, of_study: Prepared, n_trials: int = 10) -> Forecast:
    return make_forecast(
        probe, of_study, n_trials=n_trials, holdout_replicates=3, finalists=3, memory_in_use=2_000_000_000
    )


def test_without_pruning_and_reuse_a_study_is_a_product() -> None:
    greedy = {"max_new_tokens": 20, "repetition_penalty": FloatDistribution(1.0, 1.3)}
    found = of(probed(), prepared(greedy, pruner="none"))
    trials, held = 10 * 30, 2 * 10
    assert found.rows == Range(trials, trials + held)
    assert found.tokens == Range(10 * trials, 10 * (trials + held))
    assert found.seconds_without_reuse.low == pytest.approx(trials * (50 / 400 + 10 * 0.5 / 80))
    assert found.seconds.low == pytest.approx(40 * 50 / 400 + trials * 10 * 0.5 / 80), "a prompt is computed once"


def test_pruning_makes_a_range_and_the_first_trials_run_in_full() -> None:
    greedy = {"max_new_tokens": 20, "repetition_penalty": FloatDistribution(1.0, 1.3)}
    assert of(probed(), prepared(greedy)).rows == Range(30 + 9 * 15, 300 + 20)


def test_beams_are_picked_more_often_and_count_once() -> None:
    plain, beams = (of(probed(), prepared(space, pruner="none")) for space in (BEAMS[0], BEAMS))
    assert beams.tokens == plain.tokens
    assert beams.seconds_without_reuse.high > 1.4 * plain.seconds_without_reuse.high


def test_what_samples_is_decoded_again_for_the_verdict() -> None:
    sampling = {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.5, 1.0)}
    found = of(probed(), prepared(sampling, pruner="none", replicates=2))
    baseline_and_others = 30 + 9 * 2 * 30  # the baseline is greedy, as the model is, and decodes once
    finalists = 3 * (3 * 30)
    assert found.rows.high == baseline_and_others + finalists + (1 + 3) * 10


def test_what_trials_share_makes_later_ones_cheaper() -> None:
    spans = [Span(0, 400, 0, 0, 1.0), Span(8, 0, 60, 80, 0.5)]
    records = dict(probed().records)
    records[GenerationParams.of({"max_new_tokens": 20, "repetition_penalty": 1.1})] = next(iter(records.values()))
    shared = of(Probe(records, spans, 1000), prepared())
    alone = of(Probe(records, spans, 0), prepared())
    assert shared.seconds.high < alone.seconds.high
    assert shared.seconds.low < shared.seconds.high


def test_memory_is_bounded_by_the_budget(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, cache_budget=3_000)
    greedy = {"max_new_tokens": 20, "repetition_penalty": FloatDistribution(1.0, 1.3)}
    options = completed(ForecastOptions, {"metric": number_metric, "holdout": 0.25, "pruner": "none"})
    study = prepare(engine, dataset(40), greedy, None, options)
    found = of(probed(cache_bytes=1000), study)
    assert found.memory_without_reuse == 2_000_000_000 - 1000
    assert found.memory.high == found.memory_without_reuse + 3_000


@given(
    st.lists(
        st.builds(
            Span,
            rows=st.integers(0, 8),
            prompt_tokens=st.floats(0, 1e5),
            computed=st.floats(0, 1e5),
            picked=st.floats(0, 1e5),
            seconds=st.floats(0, 1e3),
        ),
        max_size=6,
    ),
    st.integers(1, 200),
    st.integers(0, 10**9),
)
@settings(max_examples=30, deadline=None)
def test_a_forecast_is_a_sane_range_whatever_was_measured(spans: list[Span], n_trials: int, cache: int) -> None:
    found = of(Probe(probed().records, spans, cache), STUDY, n_trials)
    for one in (found.rows, found.tokens, found.seconds, found.seconds_without_reuse, found.memory):
        assert 0 <= one.low <= one.high * (1 + 1e-9)
    assert len(found.text.splitlines()) == 2


def test_a_forecast_is_told_in_two_lines() -> None:
    found = Forecast(
        n_trials=40,
        probed_rows=32,
        rows=Range(864, 2093),
        tokens=Range(40_123, 95_999),
        seconds=Range(480, 2580),
        seconds_without_reuse=Range(4440, 10_500),
        memory=Range(2.71e9, 7.26e9),
        memory_without_reuse=1.94e9,
    )
    assert found.text.splitlines() == [
        "forecast for 40 trials: 860–2,100 rows, 40,000–96,000 tokens,",
        "8–43 min (1.2–2.9 h without reuse), 2.7–7.3 GB memory (1.9 GB without)",
    ]
    assert max(map(len, found.text.splitlines())) <= 80


STUDY = prepared()


@pytest.mark.parametrize("holdout", [0.3, "cross"])
def test_a_forecast_decodes_the_first_rows_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = TextEngine()
    found = forecast(engine, dataset(40), SPACE, metric=number_metric, n_trials=10, holdout=holdout)
    assert len(engine.calls) == found.probed_rows == 4 * 8
    assert list(tmp_path.iterdir()) == []
    first = run(tmp_path, n_trials=4, holdout=holdout)
    begun = {
        (first.items[r.row].prompt, t.user_attrs["fingerprint"]) for t in first.trials for r in first.records(t.number)
    }
    assert set(engine.calls) <= begun, "these are the rows that the study begins with"


def test_a_new_study_tells_its_forecast_once_and_for_free(tmp_path: Path) -> None:
    recorder, engine = Recorder(), TextEngine()
    result = run(tmp_path, engine, observer=recorder)
    kinds = [type(event) for event in recorder.events]
    told = [event for event in recorder.events if isinstance(event, progress.StudyForecast)]
    assert len(told) == 1
    assert told[0].text.startswith("forecast for 10 trials: ")
    assert kinds.index(progress.StudyForecast) < kinds.index(progress.TrialEnded)
    assert len(set(engine.calls)) == len(engine.calls), "no row was decoded for it"
    stored = result.study.user_attrs["forecast"]
    assert stored["rows"]["low"] <= sum(len(rs) for rs in result.opened.records.all_rows("search").values())
    again = Recorder()
    run(tmp_path, observer=again, n_trials=11)
    assert progress.StudyForecast not in [type(event) for event in again.events]


class Slow(TextEngine):
    """Ten tokens a row, a hundredth of a second each, by a clock of its own."""

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        done = super().complete(prompt, params)
        return Completion(done.text, tuple(range(10)), "eos", 5)


def test_a_forecast_holds_what_the_study_takes(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"dataset": dataset(60), "space": SPACE, "metric": number_metric, "n_trials": 16}
    arguments |= {"holdout": 0.3}
    found = forecast(Slow(), **arguments)
    result = run(tmp_path, Slow(), **arguments)
    stored = result.opened.records
    records = [r for phase in ("search", "finalists", "holdout") for rs in stored.all_rows(phase).values() for r in rs]
    assert found.rows.low <= len(records) <= found.rows.high
    assert found.tokens.low <= sum(len(r.token_ids) for r in records) <= found.tokens.high


def test_a_forecast_of_a_real_engine_and_the_same_study(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    arguments: dict[str, Any] = {
        "dataset": dataset(24),
        "space": [{"max_new_tokens": 8}, {"max_new_tokens": 8, "num_beams": IntDistribution(2, 3)}],
        "metric": number_metric,
        "n_trials": 3,
        "holdout": 0.3,
        "progress": False,
    }
    plain = search(Engine(tiny_llama, tiny_tokenizer), **arguments, storage=f"{tmp_path}/a.db", study_name="s")
    engine = Engine(tiny_llama, tiny_tokenizer)
    del arguments["progress"]
    found = forecast(engine, **arguments)
    assert found.memory.high > found.memory_without_reuse > 0
    assert 0 < found.seconds.low <= found.seconds_without_reuse.high
    warm = search(engine, **arguments, progress=False, storage=f"{tmp_path}/b.db", study_name="s")
    assert signature(plain) == signature(warm), "a forecast changes nothing"


NOT_FORECAST = {"timeout", "callbacks", "max_tokens", "max_cost", "storage", "study_name", "progress"}
NOT_FORECAST |= {"observer"}
"""What only says where a study is kept, when it is broken off, and how it is shown."""


def test_a_forecast_takes_what_a_search_takes() -> None:
    ours, theirs = inspect.signature(forecast).parameters, inspect.signature(search).parameters
    assert set(theirs) - set(ours) == NOT_FORECAST
    assert [name for name in theirs if name in ours] == list(ours)
    assert {name: p.default for name, p in ours.items()} == {name: theirs[name].default for name in ours}


@pytest.mark.parametrize("wrong", [{"n_trials": 0}, {"sampler": "cma"}, {"pruner": "median"}, {"metric": None}])
def test_arguments_are_checked(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"metric": number_metric} | wrong
    with pytest.raises(InputError):
        forecast(TextEngine(), dataset(40), {"max_new_tokens": 5}, **arguments)
