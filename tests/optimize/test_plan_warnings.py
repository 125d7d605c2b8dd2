"""What is found out before a model is loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna import score, search
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.plan import endless_warning
from llmsearch_optuna.task.task import Task

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
