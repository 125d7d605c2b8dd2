"""What is found out before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna import score, search
from llmsearch_optuna.errors import InputError

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
