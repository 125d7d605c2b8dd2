"""Engines of one method, and functions that are made into one."""

from __future__ import annotations

import doctest
import logging
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna import Engine, score, search
from llmsearch_optuna.backends.function import FunctionBackend
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError, InputError, StudyError
from llmsearch_optuna.optimize.resolve_engine import resolve_engine
from tests.synthetic import dataset, number_metric, score_of, temperature_near

SPACE = {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}


def worth(prompts: list[str], params: dict[str, Any]) -> list[str]:
    return [f"{score_of(prompt, params, temperature_near(0.7)):.6f}" for prompt in prompts]


def run(folder: Path, function: Any, **changed: Any) -> Any:
    arguments: dict[str, Any] = {"n_trials": 8, "storage": f"sqlite:///{folder}/s.db", "study_name": "s"} | changed
    return search(
        Engine.from_function(function),
        dataset(40),
        SPACE,
        metric=number_metric,
        progress=False,
        **{"holdout": 0.3} | arguments,
    )


def test_a_function_is_searched_and_scored(tmp_path: Path) -> None:
    result = run(tmp_path, worth)
    assert result.best_trial.number > 0
    best = result.trial_params(result.best_trial.number)
    assert abs(best["temperature"] - 0.7) < abs(1.0 - 0.7)
    row = result.completions().iloc[0]
    assert row["completion"] == worth([row["prompt"]], best)[0]
    found = score(Engine.from_function(worth), dataset(10), best, metric=number_metric)
    assert [c.text for c in found.completions] == worth([f"row {n}" for n in range(10)], best)


def test_a_function_gets_lists_and_dicts_of_its_own_and_as_many_rows_as_are_wanted() -> None:
    seen: list[tuple[int, dict[str, Any]]] = []

    def echo(prompts: list[str], params: dict[str, Any]) -> tuple[str, ...]:
        assert type(prompts) is list
        assert type(params) is dict
        seen.append((len(prompts), dict(params)))
        params.clear()
        texts = tuple(f"{prompt}!" for prompt in prompts)
        prompts.clear()
        return texts

    engine = Engine.from_function(echo, default_params={"repetition_penalty": 1.2})
    found = score(engine, dataset(7), {"max_new_tokens": 5}, metric=number_metric, batch_size=3)
    assert [c.text for c in found.completions] == [f"row {n}!" for n in range(7)]
    assert seen == [(n, {"max_new_tokens": 5, "repetition_penalty": 1.2}) for n in (3, 3, 1)]


def test_replicates_ask_with_a_seed_each() -> None:
    seeds: list[Any] = []

    def remember(prompts: list[str], params: dict[str, Any]) -> list[str]:
        seeds.append(params.get("generation_seed"))
        return ["0.5"] * len(prompts)

    params = {"max_new_tokens": 5, "do_sample": True}
    score(Engine.from_function(remember), dataset(4), params, metric=number_metric, replicates=3)
    assert len(set(seeds)) == 3


def test_a_functions_tokenizer_counts_and_templates(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine.from_function(worth, tokenizer=tiny_tokenizer)
    rows = [{"prompt": "Anna asks Ben. " * 9, "answer": ""}]
    cut = score(engine, rows, {"max_new_tokens": 5}, metric=number_metric, max_prompt_tokens=12)
    assert 1 <= len(tiny_tokenizer(cut.prompts[0])["input_ids"]) <= 12


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("text", "remember must return a list with one text a prompt, but returned 'text'"),
        (None, "remember must return a list with one text a prompt, but returned None"),
        (["a", 7], "remember must return texts, but one of them is 7"),
        (["a"], "returned 1 completions for 2 prompts"),
    ],
)
def test_an_answer_that_is_none_is_named(answer: Any, said: str) -> None:
    def remember(prompts: list[str], params: dict[str, Any]) -> Any:
        return answer

    with pytest.raises(DecodingError, match=f"row 0: .*{said}"):
        score(Engine.from_function(remember), dataset(2), {"max_new_tokens": 5}, metric=number_metric)


def test_a_function_that_is_edited_makes_another_study(tmp_path: Path) -> None:
    run(tmp_path, worth, n_trials=2)
    run(tmp_path, worth, n_trials=3)

    def other(prompts: list[str], params: dict[str, Any]) -> list[str]:
        return ["0.5" for _ in prompts]

    with pytest.raises(StudyError, match="model.function"):
        run(tmp_path, other, n_trials=4)


def test_the_worked_example_holds() -> None:
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(Engine.from_function, globs={"Engine": Engine}):
        runner.run(example)
    assert runner.summarize() == (0, 3)


def test_a_bare_function_is_told_what_to_do() -> None:
    with pytest.raises(InputError, match=r"Engine\.from_function"):
        resolve_engine(worth)


def test_every_input_and_output_is_logged_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    def failing(prompts: list[str], params: dict[str, Any]) -> list[str]:
        if "row 1" in prompts:
            raise ValueError("not this one")
        return ["a\x1b[31m\nb" for _ in prompts]

    backend = FunctionBackend(Engine.from_function(failing), batch_rows=1)
    params = GenerationParams.of({"max_new_tokens": 5})
    with caplog.at_level(logging.DEBUG, logger="llmsearch_optuna"):
        backend.submit(Request("t", n, f"row {n}", params) for n in range(2))
        assert len(backend.poll() + backend.poll()) == 2
    assert "row 0, replicate 0: 'row 0' -> 'a\\x1b[31m\\nb' (0 tokens, eos)" in caplog.messages
    assert "row 1, replicate 0: 'row 1' -> failed: the engine raised ValueError: not this one" in caplog.messages
