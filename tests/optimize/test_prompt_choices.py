"""Prompts, system messages and variables of the chat template that are searched beside generation parameters."""

from __future__ import annotations

import copy
import json
import multiprocessing
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.analysis.model_card import card_section
from llmsearch_optuna.api import confirm, forecast, score, search
from llmsearch_optuna.cli.bundle import copy_through_optuna, open_bundle, write_bundle
from llmsearch_optuna.dashboard.notes import study_note
from llmsearch_optuna.declaration import completed
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import DecodingError, InputError, StudyError
from llmsearch_optuna.fingerprint.diff import digest
from llmsearch_optuna.optimize.forecast import Range, _prompts_once
from llmsearch_optuna.optimize.prepare import prepare
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.options import ForecastOptions
from llmsearch_optuna.report import collect, render
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage.trials import params_of
from tests.optimize.studies import SAMPLING, SPACE, Interrupting, run, signature
from tests.synthetic import TextEngine, dataset, number_metric
from tests.tiny import SENTENCES

KIND = {"rude": "Do {prompt}", "kind": "Please do {prompt}", "long": "Would you be so kind and do {prompt}"}
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<a>{% if thinking %}hm {% endif %}"


class Polite(Interrupting):
    """Answers what begins with "Please" better than anything else."""

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        assert not {"prompt", "system"} & set(params), "no engine is told of a task's choices"
        found = super().complete(prompt, params)
        better = min(1.0, 0.7 * float(found.text) + 0.3 * prompt.startswith("Please"))
        return Completion(f"{better:.6f}", found.token_ids, "eos", len(prompt))


def kind(folder: Path, engine: Any = None, **changed: Any) -> SearchResult:
    return run(folder, engine or Polite(), **{"prompt": KIND, "n_trials": 14, **changed})


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return kind(tmp_path_factory.mktemp("asked"))


def test_the_best_prompt_is_found_and_is_part_of_the_result(asked: SearchResult) -> None:
    assert asked.best_params["prompt"] == "kind"
    assert asked.best_task_options == asked.recommended_task_options == {"prompt": KIND["kind"]}
    assert asked.verdict is not None
    assert asked.verdict.answer == "better"
    assert asked.baseline_params["prompt"] == "rude", "the first one"


def test_samplers_and_dashboards_see_categories(asked: SearchResult) -> None:
    labels = CategoricalDistribution(tuple(KIND))
    assert all(t.distributions["prompt"] == labels for t in asked.trials)
    assert {t.params["prompt"] for t in asked.trials} == set(KIND)
    assert asked.trials[0].params["prompt"] == "rude", "TPE learns from the baseline"
    frame = asked.trials_dataframe()
    assert list(frame["params_prompt"]) == [t.params["prompt"] for t in asked.trials]


def test_pruning_pairs_rows_of_different_prompts(asked: SearchResult) -> None:
    pruned = [t for t in asked.trials if t.state is TrialState.PRUNED]
    assert pruned
    assert any(t.params["prompt"] != "kind" for t in pruned)
    positions = {item.row: item.position for item in asked.items.values()}
    for t in asked.trials:
        rows = [positions[r.row] for r in asked.records(t.number)]
        assert sorted(set(rows)) == list(range(len(set(rows)))), "the first rows of one permutation"


def test_every_completion_is_shown_with_the_prompt_that_it_answers(asked: SearchResult) -> None:
    for trial in asked.trials:
        start = KIND[trial.params["prompt"]].partition("{")[0]
        frame = asked.completions(trial.number)
        assert len(frame)
        assert all(row.prompt == f"{start}row {row.row}" for row in frame.itertuples())
    stored = load_result(str(asked.opened.path))
    assert stored.completions().equals(asked.completions())
    assert stored.best_task_options == {"prompt": KIND["kind"]}
    page = render(collect(stored))
    assert "prompt of the defaults" in page
    assert "Please do {prompt}" in page
    (path,) = [p for p in stored.opened.artifacts_folder.iterdir() if '"prompt": "Please do row' in p.read_text()][:1]
    assert "Do row" not in path.read_text()


def test_each_configuration_answers_as_its_prompt_alone_does(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The slow twin: every configuration once more by `score`, with its prompt, system message and variable alone."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    rows = [{"text": f"{SENTENCES[n % 7]} {n}", "reference": SENTENCES[n % 7]} for n in range(24)]
    task = {"metric": "chrf", "reference": "reference", "batch_size": 8}
    prompts = {"a": "{text}", "b": "Sum up: {text}"}
    space = {"max_new_tokens": IntDistribution(3, 9), "do_sample": True, "temperature": FloatDistribution(0.5, 2.0)}
    result = search(
        tiny_llama, rows, space, tokenizer, prompt=prompts, system=[None, "Be brief."],
        chat_template_kwargs={"thinking": [True, False]}, n_trials=9, pruner="none", progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s", **{"holdout": 0.3} | task,
    )  # fmt: skip
    engine = Engine(tiny_llama, tokenizer)
    seen = set()
    for trial in result.trials:
        options = result.choices.options(result.trial_params(trial.number))
        seen.add(json.dumps(options))
        plain = params_of(trial).decoding
        assert set(plain) & {"prompt", "system"} == set()
        alone = score(engine, rows, plain, metric="chrf", reference="reference", **options)
        records = [*result.records(trial.number), *result.records(trial.number, "holdout")]
        records = [r for r in records if r.replicate == 0]
        assert records
        for r in records:
            assert r.token_ids == alone.completions[r.row].token_ids
            assert result.prompt(r.row, trial.number) == alone.prompts[r.row]
        found = result.row_scores(trial.number)
        assert found == pytest.approx({row: alone.scores[row] for row in found})
    assert len(seen) >= 4
    again = score(
        engine, rows, result.best_params, metric="chrf", reference="reference", prompt=prompts,
        system=[None, "Be brief."], chat_template_kwargs={"thinking": [True, False]},
    )  # fmt: skip
    best = result.records(result.best_trial.number)
    assert all(r.token_ids == again.completions[r.row].token_ids for r in best), "best_params say which prompt it was"


def test_an_interrupted_study_equals_one_that_was_not(tmp_path: Path, asked: SearchResult) -> None:
    engine, stops = Polite(), 0
    engine.every = 9
    while True:
        try:
            result = kind(tmp_path, engine)
            break
        except StudyInterrupted:
            stops += 1
    assert stops >= 3
    assert signature(result) == signature(asked)
    assert len(set(engine.calls)) == len(engine.calls), "a row was decoded twice"


def _work(folder: str) -> None:
    kind(Path(folder))


def test_two_processes_make_the_study_that_one_makes(tmp_path: Path, asked: SearchResult) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert signature(load_result(f"{tmp_path}/s.db")) == signature(asked)


def test_baselines_and_what_is_tried_first_name_a_prompt(tmp_path: Path) -> None:
    result = kind(
        tmp_path, n_trials=5, baseline={"prompt": "long"}, baselines={"paper": {"prompt": KIND["kind"]}},
        try_first=[{"prompt": "kind", "do_sample": True, "temperature": 0.7, "top_p": 0.9}],
    )  # fmt: skip
    said = [(t.user_attrs["role"], t.user_attrs["params"]["prompt"]) for t in result.trials]
    assert said == [
        ("baseline", "long"), ("baseline paper", "kind"), ("baseline generation_config.json", "rude"),
        ("try_first", "kind"), ("searched", said[4][1]),
    ]  # fmt: skip
    assert result.trials[3].params == {"branch": "sampling", "temperature": 0.7, "top_p": 0.9, "prompt": "kind"}


def test_greedy_has_the_baselines_prompt(tmp_path: Path) -> None:
    baseline = {"prompt": "long", "do_sample": True, "temperature": 0.9}
    result = kind(tmp_path, n_trials=2, baseline=baseline)
    greedy = result.trials[1]
    assert (greedy.user_attrs["role"], greedy.user_attrs["params"]["prompt"]) == ("greedy", "long")
    assert greedy.user_attrs["params"].get("do_sample") is None


def test_a_branch_may_say_which_prompts_it_has(tmp_path: Path) -> None:
    space = [
        {"max_new_tokens": 20, "prompt": "rude"},
        {**SAMPLING, "prompt": CategoricalDistribution(["kind", "long"])},
    ]
    result = kind(tmp_path, space=space)
    found = {(t.params.get("branch"), t.user_attrs["params"]["prompt"]) for t in result.trials}
    assert found == {("default", "rude"), ("sampling", "kind"), ("sampling", "long")}


def test_a_grid_has_every_prompt_and_a_function_may_be_the_space(tmp_path: Path) -> None:
    grid = kind(
        tmp_path, name="grid", n_trials=None, sampler="grid",
        space={"max_new_tokens": 20, "do_sample": True, "temperature": CategoricalDistribution([0.5, 1.0])},
    )  # fmt: skip
    searched = [t.user_attrs["params"] for t in grid.trials if t.user_attrs["role"] == "searched"]
    assert {(p["prompt"], p.get("temperature", 1.0)) for p in searched} == {(k, t) for k in KIND for t in (0.5, 1.0)}
    function = kind(
        tmp_path, name="function",
        space=lambda trial: {"max_new_tokens": 20, "do_sample": True, "temperature": trial.suggest_float("t", 0.1, 2)},
    )  # fmt: skip
    assert {t.user_attrs["params"]["prompt"] for t in function.trials} == set(KIND)


def test_a_study_without_choices_is_the_one_that_it_was(tmp_path: Path) -> None:
    """The fingerprints and the texts of studies from before there were choices, and of those with one prompt only."""
    plain = run(tmp_path, n_trials=6)
    found = plain.opened.records.fingerprint()
    assert digest({part: found[part] for part in ("baseline", "data", "space")}) == PLAIN
    assert plain.opened.records.prompts(1) == {}
    assert "choices" not in plain.settings
    one = run(tmp_path, TextEngine(), n_trials=6, prompt=["{prompt}"], name="one")
    again = run(tmp_path, TextEngine(), n_trials=6, prompt="{prompt}", name="again")
    assert one.opened.records.fingerprint() == again.opened.records.fingerprint()
    assert signature(one) == signature(again)


PLAIN = "d1bb41bcb61a0db0"


def test_a_study_goes_on_only_with_the_prompts_that_it_was_started_with(tmp_path: Path) -> None:
    kind(tmp_path, n_trials=3)
    with pytest.raises(StudyError, match="started with something else"):
        kind(tmp_path, n_trials=3, prompt={**KIND, "kind": "Pretty please do {prompt}"})
    with pytest.raises(StudyError, match="started with something else"):
        kind(tmp_path, n_trials=3, prompt=KIND["rude"])
    engine = Polite()
    kind(tmp_path, engine, n_trials=3)
    assert engine.calls == []


def test_functions_are_prompts_too(tmp_path: Path) -> None:
    def loud(row: Mapping[str, Any]) -> str:
        return f"Please do {row['prompt']}".upper()

    result = kind(tmp_path, n_trials=6, prompt=["Do {prompt}", loud])
    assert [label for label, _ in result.settings["choices"]["prompt"]] == ["1. Do {prompt}", "2. loud"]
    assert result.settings["choices"]["prompt"][1][1] == "function loud"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": {"a": "{prompt}", "b": "{nowhere}"}}, "prompt='b': the prompt template: there is no column"),
        ({"prompt": ["{prompt}", "{prompt}"]}, "are the same; leave one out"),
        ({"prompt": {"a": "{prompt}", "b": "same"}}, "prompt='b': the prompt template 'same' names no column"),
        ({"baseline": {"prompt": "none"}}, "baseline=: prompt='none' is none of 'rude', 'kind', 'long'"),
        ({"baselines": {"x": {"system": "s"}}}, "baselines['x']: 'system' is no generation parameter but names one"),
        ({"try_first": [{"prompt": 3}]}, "try_first[0]: prompt=3 is none of"),
        ({"space": {"max_new_tokens": 4, "prompt": "x"}}, "prompt='x' is none of 'rude', 'kind', 'long'"),
        ({"space": SPACE, "prompt": "{prompt}", "baseline": {"prompt": "a"}}, "this task has one only"),
        ({"space": {"max_new_tokens": 4, "prompt": "Do {prompt}"}, "prompt": None}, "give prompt=[…, …] beside"),
        ({"chat_template_kwargs": {"thinking": [True, False]}}, "make the same prompts of all rows"),
        ({"chat_template_kwargs": ["thinking"]}, "must be a dict of the chat template's variables"),
        ({"system": ["Be brief.", 7]}, "system: 7 is no text"),
    ],
)
def test_wrong_inputs_are_said_in_words(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    engine = Polite()
    with pytest.raises(InputError, match=re.escape(said)):
        kind(tmp_path, engine, **changed)
    assert engine.calls == []
    assert not (tmp_path / "s.db").exists()


def test_a_score_is_of_one_prompt(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows, params = dataset(3), {"max_new_tokens": 2}
    with pytest.raises(InputError, match=r"prompt is not said, and there are several; name one of 'rude', 'kind'"):
        score(Polite(), rows, {"max_new_tokens": 20}, prompt=KIND, metric=number_metric)
    with pytest.raises(InputError, match=r"this task has one only. To choose among several give prompt=\[…, …\]"):
        score(Polite(), rows, {"max_new_tokens": 20, "prompt": "kind"}, prompt="{prompt}", metric=number_metric)
    kind_one = score(Polite(), rows, {"max_new_tokens": 20, "prompt": "kind"}, prompt=KIND, metric=number_metric)
    assert kind_one.prompts[0] == "Please do row 0"
    assert kind_one.params["prompt"] == "kind"
    with pytest.raises(DecodingError, match="prompt says what is asked for"):
        Engine(tiny_llama, tiny_tokenizer).generate(["a"], {**params, "prompt": "kind"})


def test_a_forecast_counts_every_prompt_that_may_be_tried() -> None:
    options = completed(ForecastOptions, {"metric": number_metric, "prompt": KIND, "holdout": 0.3})
    plan = prepare(Polite(), dataset(40), SPACE, None, options).plan
    assert _prompts_once(plan, 14) == Range(40, 3 * 28 + 2 * 12)
    assert _prompts_once(plan, 1) == Range(40, 40)
    plain = prepare(Polite(), dataset(40), SPACE, None, options | {"prompt": None}).plan
    assert _prompts_once(plain, 14) == Range(40, 40)


def test_forecast_and_confirm_ask_as_the_search_did(tmp_path: Path, asked: SearchResult) -> None:
    found = forecast(
        Polite(), dataset(40), SPACE, metric=number_metric, prompt=KIND, n_trials=14, baseline={"prompt": "long"}
    )
    assert found.rows.high > 0
    held = confirm(asked, Polite(), dataset(40), metric=number_metric, prompt=KIND)
    assert held.here.difference == pytest.approx(asked.verdict.difference)
    with pytest.raises(InputError, match="this task has one only"):
        confirm(asked, Polite(), dataset(40), metric=number_metric, prompt=KIND["kind"])


def test_what_is_handed_on_has_the_prompt(tmp_path: Path, asked: SearchResult) -> None:
    result = load_result(str(asked.opened.path))
    result.save_generation_config(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert "prompt" not in config
    evidence = json.loads((tmp_path / "hf" / "evidence.json").read_text())
    assert evidence["task_options"] == {"prompt": KIND["kind"]}
    assert "'prompt'" not in evidence["call"]
    assert json.dumps(KIND["kind"]) in card_section(result)
    assert "Please do {prompt}" in study_note(collect(result))
    opened = open_bundle(write_bundle(result, tmp_path / "b.zip"), tmp_path / "b")
    assert opened.completions().equals(result.completions())
    assert opened.best_task_options == result.best_task_options
    copy_through_optuna(result.opened, tmp_path / "copied.db")
    assert load_result(str(tmp_path / "copied.db")).completions().equals(result.completions())


def test_it_goes_with_samples_and_with_halves_that_judge_each_other(tmp_path: Path) -> None:
    space = {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}
    drawn = {"samples": 3, "aggregate": "mean"}
    result = kind(tmp_path, space=space, holdout="cross", pruner="none", n_trials=12, **drawn)
    assert result.verdict is not None
    assert result.verdict.difference is not None
    chosen = {t.user_attrs["params"]["prompt"] for t in result.trials}
    assert len(chosen) > 1
    for trial in result.trials:
        params = params_of(trial)
        alone = score(
            Polite(), dataset(40), params.decoding, metric=number_metric, prompt=KIND[params["prompt"]], **drawn
        )
        found = result.row_scores(trial.number)
        assert len(found) in (20, 40)
        assert found == pytest.approx({row: alone.scores[row] for row in found})
