"""Arguments of another kind than they must be are refused in words, whichever function they are given to."""

from __future__ import annotations

import decimal
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, judge, transient_errors
from llmsearch_optuna.api import check, confirm, forecast, score, search
from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric

OF_NO_KIND = (0.5, True, [1], b"x", object(), 1j, type)


class Rude:
    """Raises even where it is to be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def numbers() -> Iterator[int]:
    yield from (1, 2)


ODD: tuple[Any, ...] = (
    *(True, -1, 0.5, math.nan, -math.inf, 10**400, 10**5000, 1e308, 1j, decimal.Decimal("0.5")),
    *("", " ", "x", "0.5", "\ud800", "a\x00b", b"x", np.str_("x"), Path("x")),
    *([], (), {}, [None], [1], [[]], ["x"], {"x"}, {"a": 1}, {1: 2}, {"a": None}, {"a": {}}, range(3)),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.array([1, 2]), np.array([]), torch.tensor(1.0)),
    *(numbers, numbers(), object(), int, lambda *_: 1, Rude(), None),
)


def only_own_errors(call: Callable[..., Any], given: Mapping[str, Any], *options: str) -> None:
    """Give each option every odd value; whatever is not taken is refused by an error of the project."""
    raised = []
    for option in options:
        for place, value in enumerate(ODD):
            try:
                try:
                    call(**{**given, option: value})
                except LlmsearchError as problem:
                    str(problem).encode()
            except Exception as error:
                raised.append(f"{option}=ODD[{place}]: {type(error).__name__}: {error}")
    assert not raised, "\n".join(raised)


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # a text may be the name of a file
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0,))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def options_of(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_score() -> None:
    given = {"model": TextEngine(), "dataset": dataset(3), "params": {"max_new_tokens": 3}, "metric": number_metric}
    only_own_errors(score, given, *options_of(score))


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_search_that_score_does_not_have(tmp_path: Path) -> None:
    given = {"model": TextEngine(), "dataset": dataset(4), "space": {"max_new_tokens": 3}, "metric": number_metric}
    given |= {"storage": str(tmp_path / "s.db"), "study_name": "s", "progress": False, "n_trials": 1}
    search(**given)
    numbers_only = ("n_trials", "search_rows", "holdout_rows", "folds", "seed", "holdout_replicates", "finalists")
    numbers_only += ("trials_in_flight", "timeout", "max_tokens", "max_cost", "margin")  # see below
    left = [name for name in options_of(search) if name not in (*options_of(score), *numbers_only)]
    only_own_errors(search, given, *left)


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_confirm_and_check(tmp_path: Path) -> None:
    given = {"study": run(tmp_path, dataset=dataset(24), n_trials=2), "model": TextEngine(), "dataset": dataset(24)}
    for function in (confirm, check):
        only_own_errors(function, given | {"metric": number_metric}, "study", "model", "dataset", "tokenizer")
    only_own_errors(confirm, given | {"metric": number_metric}, "constraints")
    only_own_errors(check, given | {"metric": number_metric}, "margin")


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_forecast() -> None:
    given = {"model": TextEngine(), "dataset": dataset(4), "space": {"max_new_tokens": 3}, "metric": number_metric}
    only_own_errors(forecast, given | {"n_trials": 1}, "space", "baseline", "try_first", "sampler", "n_trials")


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_a_judge() -> None:
    def judged(**given: Any) -> None:
        judge(**given).score_rows(["a"], [None], [{"question": "?"}])

    given = {"model": Engine.from_function(lambda prompts, params: ["3"] * len(prompts)), "rubric": "Is it good?"}
    only_own_errors(judged, given, *options_of(judge))


@pytest.mark.usefixtures("_quiet")
def test_any_argument_of_an_engine(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    given = {"model": tiny_llama, "tokenizer": tiny_tokenizer, "batch_size": 2, "cache_budget": 10**6}
    only_own_errors(Engine, given, *options_of(Engine))
    engine = Engine(**given)
    asked = {"prompts": ["Anna asks"], "params": {"max_new_tokens": 2}}
    only_own_errors(engine.generate, asked, *options_of(engine.generate))
    assert len(engine.generate(**asked)[0].token_ids) > 0
    only_own_errors(Engine.from_function, {"function": lambda *_: ["x"]}, *options_of(Engine.from_function))
    function = Engine.from_function(lambda prompts, params: ["x"] * len(prompts))
    only_own_errors(function.generate, asked, *options_of(function.generate))
    server = {"url": "http://127.0.0.1:9/v1", "model": "m", "dialect": "openai", "retry_for": 0}
    only_own_errors(Engine.from_server, server, *options_of(Engine.from_server))


@pytest.mark.parametrize("value", ["a text", b"bytes", {"a": 1}, {"a"}])
def test_prompts_that_are_one_text_or_have_no_order_are_refused(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, value: Any
) -> None:
    for engine in (Engine(tiny_llama, tiny_tokenizer), Engine.from_function(lambda prompts, params: ["x"])):
        with pytest.raises(LlmsearchError, match="must be a list of texts"):
            engine.generate(value, {"max_new_tokens": 2})


def test_progress_by_row_is_a_function_that_works(tmp_path: Path) -> None:
    def broken(done: int, total: int) -> None:
        raise KeyError(done)

    given = {"dataset": dataset(3), "params": {"max_new_tokens": 3}, "metric": number_metric}
    with pytest.raises(LlmsearchError, match=r"on_row= failed at row \d of 3: KeyError"):
        score(TextEngine(), on_row=broken, **given)
    with pytest.raises(LlmsearchError, match="on_row=3 must be a function"):
        score(TextEngine(), on_row=3, **given)


def test_a_space_that_raises_is_told_with_its_name(tmp_path: Path) -> None:
    def my_space(trial: Any) -> dict[str, Any]:
        raise KeyError("temperature")

    with pytest.raises(LlmsearchError, match="my_space failed: KeyError: 'temperature'"):
        run(tmp_path, space=my_space)


@pytest.mark.parametrize("value", OF_NO_KIND)
@pytest.mark.parametrize(
    "option", ["storage", "study_name", "objectives", "tokenizer_encode_args", "baselines", "sampler"]
)
def test_an_argument_of_another_kind(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(LlmsearchError, match=option.split("_")[0]):
        run(tmp_path, n_trials=1, dataset=dataset(4), **{option: value})


@pytest.mark.parametrize("option", ["replicates", "search_rows", "holdout_rows", "finalists", "seed", "n_trials"])
@pytest.mark.parametrize("value", ["", "3", "auto", 10**400, float("nan"), -1, True, None])
def test_a_number_that_is_none(tmp_path: Path, option: str, value: Any) -> None:
    if (option, value) == ("n_trials", None) or (value == 10**400 and option not in ("replicates",)):
        return  # the default; or a number that only says "all"
    with pytest.raises(LlmsearchError, match=option):
        run(tmp_path, dataset=dataset(4), **({"n_trials": 1} | {option: value}))


def test_a_baseline_whose_name_has_half_a_character(tmp_path: Path) -> None:
    with pytest.raises(LlmsearchError, match="no name"):
        run(tmp_path, n_trials=1, dataset=dataset(4), baselines={"\ud800": {"do_sample": False}})


def test_a_path_is_an_address(tmp_path: Path) -> None:
    result = run(tmp_path, n_trials=1, dataset=dataset(4), storage=tmp_path / "by-path.db")
    assert len(load_result(str(tmp_path / "by-path.db")).trials) == len(result.trials)
