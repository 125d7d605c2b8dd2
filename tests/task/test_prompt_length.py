"""Lengths of prompts: counted as the engine makes them, cut where asked for, and told."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from llmsearch_optuna.task.prompt_length import limit_in_tokens
from llmsearch_optuna.task.task import Task

ROWS = [{"text": "Anna asks Ben. " * times + "And so it ends.", "answer": "7"} for times in (1, 2, 9, 3, 4)]


def task(**described: Any) -> Task:
    return Task(
        **{"dataset": ROWS, "prompt": "Sum up: {text}", "reference": "answer", "metric": "contains", **described}
    )


@given(counts=st.lists(st.integers(1, 500), min_size=1, max_size=40), share=st.floats(0.01, 0.99))
def test_a_quantile_is_the_least_length_that_such_a_share_keeps_to(counts: list[int], share: float) -> None:
    limit = limit_in_tokens(share, counts)
    assert limit in counts
    assert np.mean(np.array(counts) <= limit) >= share - 1e-12
    assert np.mean(np.array(counts) < limit) < share + 1e-12


def test_a_quantile_cuts_the_longest_rows_and_says_how_many(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    whole = task().prepare(tiny_tokenizer).token_counts(PromptTokens(tiny_tokenizer))
    with caplog.at_level(logging.WARNING, logger="llmsearch_optuna"):
        prepared = task(max_prompt_tokens=0.8).prepare(tiny_tokenizer)
    assert prepared.cut_rows == (2,)
    limit = sorted(whole)[3]
    assert f"max_prompt_tokens=0.8 cut 1 of 5 rows to {limit} tokens" in caplog.text
    counts = prepared.token_counts(PromptTokens(tiny_tokenizer))
    assert counts[2] <= limit
    assert [counts[row] for row in (0, 1, 3, 4)] == [whole[row] for row in (0, 1, 3, 4)]
    assert prepared.prompts[2].startswith("Sum up: ")
    assert prepared.prompts[2].endswith("And so it ends.")


def test_a_preview_takes_the_quantile_of_all_rows(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [ROWS[2], *ROWS[:2], *ROWS[3:]]
    preview = task(dataset=rows, max_prompt_tokens=0.8).preview(1, tiny_tokenizer)
    assert [row.is_cut for row in preview.rows] == [True]
    assert preview.rows[0].prompt == task(dataset=rows, max_prompt_tokens=0.8).prepare(tiny_tokenizer).prompts[0]


@pytest.mark.parametrize("limit", [0, -3, 0.0, 1.0, 2.5, True, "many"])
def test_a_limit_is_a_number_of_tokens_or_a_share(limit: Any) -> None:
    with pytest.raises(
        InputError, match="max_prompt_tokens=.*must be a number of tokens from 1 on, or between 0 and 1"
    ):
        task(max_prompt_tokens=limit)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_by_the_tokenizer_is_counted_and_told(
    side: str, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.truncation_side = side
    arguments = {"truncation": True, "max_length": 30, "padding": "longest"}
    with caplog.at_level(logging.WARNING, logger="llmsearch_optuna"):
        prepared = task(tokenizer_encode_args=arguments).prepare(tokenizer)
    whole = [len(tokenizer(text)["input_ids"]) for text in prepared.prompts]
    too_long = tuple(row for row, count in enumerate(whole) if count > 30)
    assert 0 < len(too_long) < len(ROWS)
    assert prepared.cut_rows == too_long
    assert prepared.token_counts(PromptTokens(tokenizer)) == tuple(min(count, 30) for count in whole)
    assert f"tokenizer_encode_args cut {len(too_long)} of 5 prompts on the {side}" in caplog.text
    assert prepared.encode_args == {"truncation": True, "max_length": 30}
    prepared.check_lengths(PromptTokens(tokenizer), Positions(shared=40), 10)


def test_without_such_arguments_a_study_is_named_as_before(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert "tokenizer_encode_args" not in task().prepare(tiny_tokenizer).description
    described = task(tokenizer_encode_args={"add_special_tokens": False}).prepare(tiny_tokenizer).description
    assert described["tokenizer_encode_args"] == {"add_special_tokens": False}


def test_arguments_that_change_what_a_tokenizer_returns_are_refused() -> None:
    with pytest.raises(InputError, match="may hold add_special_tokens, truncation, max_length .* not 'return_tensors'"):
        task(tokenizer_encode_args={"truncation": True, "return_tensors": "pt"})


def test_arguments_for_a_tokenizer_need_one() -> None:
    with pytest.raises(InputError, match="are for a tokenizer, and there is none"):
        task(tokenizer_encode_args={"truncation": True, "max_length": 5}).prepare()
