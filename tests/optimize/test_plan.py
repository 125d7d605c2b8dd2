"""Parameters without effect are named once; what is wrong with the data is said before a model is loaded."""

from __future__ import annotations

import copy
import doctest
import logging
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna import presets, score, search
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize import space_points
from llmsearch_optuna.optimize.plan import endless_warning
from llmsearch_optuna.optimize.prepare import MOST_EXPECTED, expected_rows
from llmsearch_optuna.optimize.space_points import inert_by_branch
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.task.task import Task
from tests.synthetic import TextEngine, dataset, number_metric

COMMON = {"max_new_tokens": 9}
TEMPERATURE = FloatDistribution(0.1, 2.0)


@pytest.mark.parametrize(
    ("space", "defaults", "inert"),
    [
        ({**COMMON, "temperature": TEMPERATURE}, {}, {"": ("temperature",)}),
        ({**COMMON, "temperature": TEMPERATURE}, {"do_sample": True}, {"": ()}),
        ({**COMMON, "do_sample": CategoricalDistribution([True, False]), "temperature": TEMPERATURE}, {}, {"": ()}),
        ({**COMMON, "do_sample": True, "top_p": FloatDistribution(0.5, 1.0), "min_p": 0.0}, {}, {"": ()}),
        ({**COMMON, "num_beams": 1, "length_penalty": FloatDistribution(0, 2), "use_cache": True}, {},
         {"": ("length_penalty", "use_cache")}),
        ({**COMMON, "num_beams": IntDistribution(1, 3), "length_penalty": FloatDistribution(0, 2)}, {}, {"": ()}),
        ([{**COMMON, "top_k": 5}, {**COMMON, "do_sample": True, "top_k": 5}], {},
         {"default": ("top_k",), "sampling": ()}),
        (lambda trial: {**COMMON, "temperature": trial.suggest_float("temperature", 0.1, 1.0)}, {},
         {"": ("temperature",)}),
    ],
)  # fmt: skip
def test_what_never_has_an_effect_is_found(space: Any, defaults: dict[str, Any], inert: dict[str, Any]) -> None:
    assert inert_by_branch(Space.of(space), defaults) == inert


@pytest.mark.parametrize("name", presets.__all__)
def test_every_parameter_of_a_preset_has_an_effect(name: str) -> None:
    space = getattr(presets, name)(max_new_tokens=12)
    assert set(inert_by_branch(space, {"eos_token_id": 1}).values()) == {()}


def test_a_search_names_them_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = [
        {**COMMON, "do_sample": False, "temperature": 0.7},
        {**COMMON, "do_sample": True, "temperature": TEMPERATURE},
    ]
    with caplog.at_level(logging.WARNING, logger="llmsearch_optuna"):
        result = search(
            TextEngine(), dataset(30), space, baseline={"do_sample": False, "top_p": 0.9}, metric=number_metric,
            holdout=0.3, n_trials=5, progress=False, storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
        )  # fmt: skip
    assert [m for m in caplog.messages if "effect" in m] == [
        "without effect beside the other parameters, and left out: temperature (branch greedy); top_p (the baseline)"
    ]
    assert "top_p" not in result.baseline_params


def test_a_score_names_them_too(caplog: pytest.LogCaptureFixture) -> None:
    params = {**COMMON, "temperature": 0.7, "top_p": 0.9}
    found = score(TextEngine(), dataset(3), params, metric=number_metric)
    assert caplog.messages == ["without effect beside the other parameters, and left out: temperature, top_p"]
    assert found.params == COMMON
    caplog.clear()
    score(TextEngine(), dataset(3), {**COMMON, "do_sample": True, "top_p": 1.0}, metric=number_metric)
    assert caplog.messages == []


def test_the_worked_example_holds() -> None:
    assert doctest.testmod(space_points) == (0, 2)


ROWS = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(24)]
NO_MODEL = Path("there-is-no-such-model")
"""Loading it would be an error of its own."""


@pytest.mark.parametrize(
    ("data", "described", "message"),
    [
        ("nowhere.jsonl", {"prompt": "{question}", "metric": "f1"}, "there is no file nowhere.jsonl"),
        (ROWS, {"prompt": "{query}", "metric": "f1"}, "query"),
        (ROWS, {"prompt": "{question}", "metric": "f1", "reference": "answers"}, "answers"),
        (ROWS, {"prompt": "{question}", "metric": "f7"}, "f7"),
        (ROWS, {"prompt": "{question}"}, "metric= is missing"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_before_the_model_is_loaded(
    data: Any, described: dict[str, Any], message: str
) -> None:
    for ask in (search, score):
        with pytest.raises(InputError, match=message):
            ask(NO_MODEL, data, {"max_new_tokens": 4}, **described)


def test_a_chat_whose_answers_cannot_end_is_told_with_the_token_to_add(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|turn|>{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    wrapped = Task(ROWS, prompt="{question}", reference="answer", metric="f1").prepare(tokenizer)
    plain = Task(ROWS, prompt="{question}", reference="answer", metric="f1", chat_template=False).prepare(tokenizer)

    def said(task: Any, **values: Any) -> str | None:
        return endless_warning(task, tokenizer, GenerationParams.of({"max_new_tokens": 4, **values}))

    assert f"ends an answer with '<|turn|>', which is token {turn} and not among" in str(said(wrapped, eos_token_id=2))
    assert f"eos_token_id=[2, {turn}]" in str(said(wrapped, eos_token_id=2))
    assert said(wrapped, eos_token_id=[2, turn]) is None
    assert said(wrapped, eos_token_id=2, stop=["<|turn|>"]) is None
    assert said(wrapped, eos_token_id=2, stop_token_sequences=[[turn]]) is None
    assert said(plain, eos_token_id=2) is None


@pytest.mark.parametrize("sampler", [optuna.samplers.BruteForceSampler(), optuna.samplers.GridSampler({"top_k": [1]})])
def test_samplers_that_end_a_study_by_themselves_are_refused(sampler: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sampler='grid' tries every combination once"):
        search(TextEngine(), dataset(20), {"max_new_tokens": 4}, holdout=0.3, metric=number_metric, sampler=sampler)


def test_the_first_and_last_prompts_of_many_say_what_all_begin_with() -> None:
    rows = [{"prompt": f"Say {number:05}", "reference": "x"} for number in range(2 * MOST_EXPECTED + 1)]
    rows[77]["prompt"], rows[1001]["prompt"] = "Aa", "Zz"
    task = Task(rows, metric="exact_match").prepare()
    expected = expected_rows(task)
    assert {77, 1001} <= set(expected)
    assert len(expected) <= MOST_EXPECTED
    few = Task(rows[:MOST_EXPECTED], metric="exact_match").prepare()
    assert list(expected_rows(few)) == list(range(MOST_EXPECTED))
