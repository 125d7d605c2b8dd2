"""Several samples a row: the texts of a plain loop over them, studies that go on after any end, and what is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.distributions import CategoricalDistribution, FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import check, confirm, forecast, score
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion, draw_of
from llmsearch_optuna.engine.sampling.gumbel import gumbel, row_key
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.report.collect import collect
from llmsearch_optuna.report.page import render
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer, gathered
from tests.optimize.studies import Interrupting, run, signature
from tests.synthetic import ShuffledServer, TextEngine, dataset, number_metric

ROWS = [
    {"prompt": "How many apples", "reference": "7"},
    {"prompt": "Anna asks Ben whether the train", "reference": "x"},
    {"prompt": "How many apples", "reference": "2"},
]
SAMPLED = {"max_new_tokens": 5, "do_sample": True, "temperature": 1.3, "top_k": 0}


def plain_loop(
    model: LlamaForCausalLM, prompt_ids: Sequence[int], occurrence: int, replicate: int, sample: int
) -> tuple[int, ...]:
    """Whole forward passes and the noise of one sample: no cache, no batch, nothing of the engine."""
    key, written = row_key(prompt_ids, occurrence, replicate + sample * 2**20), list[int]()
    for position in range(SAMPLED["max_new_tokens"]):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt_ids, *written]])).logits[0, -1].double().numpy()
        scaled = logits / SAMPLED["temperature"]
        noise = gumbel(0, [key], [position], [np.arange(len(logits))])[0]
        written.append(int(np.argmax(scaled - np.log(np.exp(scaled - scaled.max()).sum()) - scaled.max() + noise)))
        if written[-1] == model.config.eos_token_id:
            break
    return tuple(written)


def first_letters(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(bool(text) and text[0] > "m") for text in predictions]


first_letters.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
first_letters.answer = lambda text: text[:1] > "m"  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"batch_size": 1, "cache_budget": 0}])
def test_samples_are_those_of_a_plain_loop(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, **options)
    found = score(engine, ROWS, SAMPLED, metric=first_letters, samples=4, replicates=2, aggregate="majority")
    expected = [
        [
            [plain_loop(tiny_llama, tiny_tokenizer(row["prompt"])["input_ids"], occurrence, r, s) for s in range(4)]
            for r in range(2)
        ]
        for row, occurrence in zip(ROWS, (0, 0, 1), strict=True)
    ]
    assert [[c.token_ids for c in samples] for samples in found.samples] == [of_row[0] for of_row in expected]
    assert len({c.text for c in found.samples[0]}) > 1
    votes = [
        [Counter(tiny_tokenizer.decode(ids)[:1] > "m" for ids in samples) for samples in of_row] for of_row in expected
    ]
    first = [[tiny_tokenizer.decode(samples[0])[:1] > "m" for samples in of_row] for of_row in expected]
    told = [
        [float(first[row][r] if of[True] == of[False] else of[True] > of[False]) for r, of in enumerate(of_row)]
        for row, of_row in enumerate(votes)
    ]
    assert list(found.scores) == [sum(of_row) / 2 for of_row in told]


def test_the_first_samples_do_not_depend_on_how_many_there_are(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    texts = [
        [[c.token_ids for c in row] for row in score(engine, ROWS, SAMPLED, metric=first_letters, samples=k).samples]
        for k in (1, 3, 6)
    ]
    assert [row[:1] for row in texts[2]] == texts[0]
    assert [row[:3] for row in texts[2]] == texts[1]
    plain = score(engine, ROWS, SAMPLED, metric=first_letters)
    assert [[c.token_ids] for c in plain.completions] == texts[0]


def test_what_samples_nothing_is_decoded_once(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    found = score(engine, ROWS, {"max_new_tokens": 4}, metric=first_letters, samples=8, aggregate="pass@8")
    assert [len(samples) for samples in found.samples] == [1, 1, 1]
    assert "samples" not in found.params
    assert set(found.scores) <= {0.0, 1.0}


class Votes(TextEngine):
    """Says 0 or 1; the warmer, the more often 1. Each text takes three tokens."""

    def complete(self, prompt: str, params: Any) -> Completion:
        text = super().complete(prompt, params).text
        return Completion(str(int(float(text) * 1e6) % 10 < 4 + 3 * float(params.get("temperature", 0))), (1, 2, 3))


def is_one(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(text == "True") for text in predictions]


is_one.bounds = (0.0, 1.0)  # type: ignore[attr-defined]

SPACE = {"max_new_tokens": 5, "do_sample": True, "temperature": FloatDistribution(0.1, 1.5)}
ASKED: dict[str, Any] = {
    "space": SPACE,
    "metric": is_one,
    "samples": 3,
    "aggregate": "majority",
    "n_trials": 6,
    "baseline": {"do_sample": True, "temperature": 0.3},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("votes"), Votes(), **ASKED)


def test_a_study_scores_rows_and_counts_the_tokens_of_all_samples(study: Any) -> None:
    records = study.records(0)
    assert {len(r.samples) for r in records} == {3}
    assert all(r.score == float(Counter(s.text for s in r.samples)["True"] >= 2) for r in records)
    assert study.trials[0].user_attrs["tokens"] == 9 * len(records)
    assert study.trials[0].user_attrs["params"]["samples"] == 3
    greedy = next(t.number for t in study.trials if t.user_attrs["role"] == "greedy")
    assert {len(r.samples) for r in study.records(greedy)} == {1}
    assert study.settings["metric"] == "majority(is_one)"
    assert "3 samples a row" in study.settings["baseline_note"]
    told = study.completions(0)
    assert len(told) == len(records)
    assert told["tokens"].unique().tolist() == [9]
    assert told["samples"][0] == [s.text for s in records[0].samples]


def test_report_notes_and_artifacts_say_how_samples_voted(study: Any) -> None:
    page = render(data := collect(study))
    example = data.examples[0]
    (winner,) = [
        r for r in study.records(study.best_trial.number, "holdout") if (r.row, r.replicate) == (example.row, 0)
    ]
    assert example.best_samples == tuple(s.text for s in winner.samples)
    counts = Counter(example.best_samples).most_common()
    assert example.best_votes == "3 samples: " + ", ".join(f"{n} for '{text.lower()}'" for text, n in counts)
    assert page.count("<summary>3 samples: ") >= len(data.examples)
    files = get_all_artifact_meta(study.opened.trial(0), storage=study.opened.rdb)
    lines = (study.opened.artifacts_folder / files[0].artifact_id).read_text().splitlines()
    (first, *_), records = map(json.loads, lines), study.records(0)
    assert first["samples"] == [s.text for s in records[0].samples]
    assert first["votes"].startswith("3 samples: ")
    assert first["tokens"] == 9


def test_another_metric_takes_the_mean_of_the_samples(study: Any) -> None:
    told = study.rescore(is_one).set_index("number")
    texts = [s.text for r in study.records(0) for s in r.samples]
    assert told.loc[0, "is_one"] == pytest.approx(texts.count("True") / len(texts))


def test_pruning_counts_whole_rows(study: Any) -> None:
    for t in study.trials:
        counted = int(t.user_attrs["rows"].split()[0])
        each = 1 if t.user_attrs["role"] == "greedy" else 3
        assert t.user_attrs["tokens"] == 3 * each * counted


def test_the_order_of_arrival_changes_nothing(study: Any, tmp_path: Path) -> None:
    for seed in (1, 2):
        again = run(tmp_path, ShuffledServer(Votes(), seed), name=f"s{seed}", **ASKED)
        assert [t.value for t in again.trials] == [t.value for t in study.trials]
        assert again.looks[-1].winner == study.looks[-1].winner


@pytest.mark.parametrize("every", [9])
def test_a_study_that_is_interrupted_goes_on_as_if_nothing_had_been(study: Any, tmp_path: Path, every: int) -> None:
    class Breaking(Interrupting, Votes):
        pass

    engine = Breaking()
    engine.every = every
    for _ in range(200):
        try:
            again = run(tmp_path, engine, **ASKED)
        except (StudyInterrupted, KeyboardInterrupt):
            continue
        break
    assert signature(again) == signature(study)


def test_samples_may_be_searched_and_share_what_is_decoded(tmp_path: Path) -> None:
    engine = Votes()
    space = {**SPACE, "temperature": 0.6, "samples": CategoricalDistribution([1, 3, 8])}
    asked = {**ASKED, "space": space, "samples": 1, "sampler": "grid", "n_trials": None, "trials_in_flight": 1}
    found = run(tmp_path, engine, pruner="none", holdout=0.0, finalists=1, **asked)
    by_samples = {
        t.user_attrs["params"].get("samples", 1): t for t in found.trials if t.user_attrs["role"] == "searched"
    }
    assert set(by_samples) == {1, 3, 8}
    texts = {k: {r.row: [s.text for s in r.samples] for r in found.records(t.number)} for k, t in by_samples.items()}
    assert all(texts[8][row][:3] == texts[3][row] and texts[3][row][:1] == texts[1][row] for row in texts[8])
    most = [t.user_attrs["tokens"] for t in by_samples.values()]
    assert sorted(most) == [120, 360, 960]
    assert max(Counter(engine.calls).values()) == 1, "nothing is decoded twice"


def test_a_space_with_samples_is_tested_against_one_sample(tmp_path: Path) -> None:
    asked = {**ASKED, "samples": 1, "space": {**SPACE, "samples": 5}, "n_trials": 4}
    found = run(tmp_path, Votes(), **asked)
    assert "samples" not in found.settings["baseline"]
    assert "samples=5" in found.settings["baseline_note"]
    assert {t.user_attrs["params"].get("samples") for t in found.trials if t.user_attrs["role"] == "searched"} == {5}


def test_conditions_and_objectives_are_of_all_samples(tmp_path: Path) -> None:
    asked = {**ASKED, "constraints": {"tokens": "<= 12", "terminates": ">= 0.8"}}
    found = run(tmp_path, Votes(), **asked)
    assert found.trials[0].user_attrs["conditions"] == {"tokens": 9.0, "terminates": 1.0}
    front = run(tmp_path, Votes(), name="front", **{**ASKED, "objectives": ("score", "tokens")})
    assert front.trials[0].values[1] == 9.0


def test_check_and_confirm_draw_as_many_samples(study: Any) -> None:
    asked: dict[str, Any] = {"metric": is_one, "aggregate": "majority"}
    engine = Votes()
    assert study.verdict.difference is not None
    same = confirm(study, engine, dataset(40), **asked)
    assert same.here.difference == study.verdict.difference
    found = check(study, Votes(), dataset(40), **asked)
    assert found.found.changed == 0
    with pytest.raises(InputError, match="majority"):
        check(study, Votes(), dataset(40), metric=is_one)


def test_a_forecast_counts_every_sample(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"metric": is_one, "n_trials": 6, "pruner": "none", "holdout": 0.0}
    one = forecast(Votes(), dataset(40), SPACE, **asked)
    three = forecast(Votes(), dataset(40), SPACE, samples=3, **asked)
    assert three.tokens.low > 2.5 * one.tokens.low


def test_more_samples_than_are_drawn_and_corpus_metrics_are_refused() -> None:
    sampled = {"max_new_tokens": 4, "do_sample": True}
    with pytest.raises(InputError, match="pass@4.* takes at least 4 samples of a row, and samples=2"):
        score(TextEngine(), dataset(4), sampled, metric=number_metric, samples=2, aggregate="pass@4")
    with pytest.raises(InputError, match="samples=2: one score is made of a row's samples, and bleu"):
        score(TextEngine(), dataset(4), sampled, metric="bleu", reference="answer", samples=2)
    with pytest.raises(InputError, match=r"samples=0 must be a whole number from 1 to 1,024"):
        score(TextEngine(), dataset(4), sampled, metric=number_metric, samples=0)


def test_a_searched_number_must_be_enough(tmp_path: Path) -> None:
    space = {**SPACE, "samples": CategoricalDistribution([1, 8])}
    with pytest.raises(InputError, match=r"pass@4\(is_one\) takes at least 4 samples"):
        run(tmp_path, Votes(), **{**ASKED, "space": space, "samples": 4, "aggregate": "pass@4"})


def test_an_engine_itself_gives_one_completion(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="samples=3: generate gives one completion a prompt"):
        Engine(tiny_llama, tiny_tokenizer).generate(["a"], {**SAMPLED, "samples": 3})


def test_samples_are_no_part_of_what_a_backend_is_told() -> None:
    params = GenerationParams.of({**SAMPLED, "samples": 3})
    assert (params.samples, params.one_sample.samples) == (3, 1)
    assert params.one_sample == GenerationParams.of(SAMPLED)
    assert params.most_tokens == 15
    assert "samples" in GenerationParams.of({"max_new_tokens": 4, "samples": 3}).inert
    assert "samples" not in params.to_hugging_face()


def test_an_answer_alone_may_be_sampled_behind_a_greedy_thought() -> None:
    asked = {"max_new_tokens": 9, "after_thinking.do_sample": True, "samples": 4}
    params = GenerationParams.of(asked)
    assert (params.samples, is_random(params)) == (4, True)
    assert GenerationParams.of(params.canonical) == params
    assert "samples" not in params.decoding
    assert not is_random(GenerationParams.of({"max_new_tokens": 9}))
    with pytest.raises(InputError, match="after_thinking.samples is not possible"):
        GenerationParams.of({"max_new_tokens": 9, "after_thinking.samples": 4})


def test_a_gatherer_gives_rows_that_are_whole() -> None:
    gatherer = SampleGatherer(2)
    second = RowRecord(1, 0, "b", (1, 2), sample=1)
    assert gatherer.add([second, RowRecord(2, 0, "x")]) == []
    assert gatherer.has(1, draw_of(0, 1))
    assert not gatherer.has(1, draw_of(0, 0))
    (whole,) = gatherer.add([RowRecord(1, 0, "a", (3,), error="no")])
    assert ([s.text for s in whole.samples], whole.tokens, whole.error) == (["a", "b"], 3, "no")
    assert gathered([second]) == []
    assert [len(r.samples) for r in gathered([second, RowRecord(1, 0, "a")])] == [2]
