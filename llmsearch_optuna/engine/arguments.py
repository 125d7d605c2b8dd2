"""What `Engine` is made with, checked before anything is built of it."""

from __future__ import annotations

from typing import Any

from llmsearch_optuna.errors import InputError, is_one_of, short

MOST_BATCH_ROWS = 65_536
"""A larger batch size is a mistake: memory for it is asked for at once."""


def check_engine_arguments(model: Any, tokenizer: Any, *, batch_size: Any, cache_budget: Any, top: Any) -> None:
    """Raise InputError for what an engine cannot be made with; see `Engine`, whose arguments these are."""
    if isinstance(model, type) or not all(hasattr(model, name) for name in ("config", "forward", "modules")):
        raise InputError(
            f"model={short(model)} is no model of transformers; give a loaded one (search and score take its name too)"
        )
    if isinstance(tokenizer, type) or not callable(tokenizer) or not hasattr(tokenizer, "all_special_tokens"):
        raise InputError(f"tokenizer={short(tokenizer)} is no tokenizer of transformers; give the model's, loaded")
    if not is_one_of(batch_size, "auto") and not _is_whole(batch_size, 1, MOST_BATCH_ROWS):
        raise InputError(
            f'batch_size is {short(batch_size)}; give "auto" or a number of rows from 1 to {MOST_BATCH_ROWS:,}'
        )
    if not is_one_of(cache_budget, "auto") and not _is_whole(cache_budget, 0):
        raise InputError(f'cache_budget is {short(cache_budget)}; give "auto" or a number of bytes, 0 for no cache')
    if not _is_whole(top, 1):
        raise InputError(f"top is {short(top)}; give how many of the largest logits to keep, from 1 on")


def check_server_arguments(url: Any, **names: Any) -> None:
    """Raise InputError for an address or a name that is no text; see `Engine.from_server`."""
    for name, text in {"url": url, **names}.items():
        if text is None and name != "url":
            continue
        if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{name}={short(text)} must be a text, without halves of characters")


def _is_whole(value: Any, least: int, most: int | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return value >= least and (most is None or value <= most)
