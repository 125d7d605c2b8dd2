"""Prepared tasks: repeated prompts, and the room that prompts leave for new tokens."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from llmsearch_optuna.task.task import Task

ROWS = [
    {"dialogue": "Anna: Hi Ben!", "summary": "Anna greets Ben."},
    {"dialogue": "Ben: The train leaves at seven.", "summary": "Ben names the time."},
]


def test_repeated_prompts_are_counted() -> None:
    rows = [{"q": text, "a": "x"} for text in ("one", "two", "one", "three", "one")]
    prepared = Task(rows, prompt="{q}", reference="a", metric="f1").prepare()
    assert prepared.occurrences == (0, 0, 1, 0, 2)
    assert prepared.distinct == (0, 1, 0, 2, 0)


def test_prompts_must_leave_room_for_the_new_tokens(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    task = Task(ROWS, prompt="Sum up: {dialogue}", reference="summary", metric="f1")
    prepared = task.prepare(tiny_tokenizer)
    counts = prepared.token_counts(PromptTokens(tiny_tokenizer))
    assert counts == tuple(len(tiny_tokenizer(text)["input_ids"]) for text in prepared.prompts)
    longest = max(counts)
    for fits in (Positions(shared=longest + 20), Positions(prompt=longest, completion=20), Positions()):
        prepared.check_lengths(PromptTokens(tiny_tokenizer), fits, 20)
    where = rf"row {counts.index(longest)} \({longest} tokens\)"
    for tight in (Positions(shared=longest + 19), Positions(prompt=longest - 1)):
        with pytest.raises(InputError, match=rf"1 of 2 prompts do not fit.*{where}.*max_prompt_tokens={longest - 1}"):
            prepared.check_lengths(PromptTokens(tiny_tokenizer), tight, 20)
    for none in (Positions(shared=16), Positions(completion=15)):
        with pytest.raises(InputError, match="not even a prompt of one token fits: .*max_new_tokens=16"):
            prepared.check_lengths(PromptTokens(tiny_tokenizer), none, 16)
