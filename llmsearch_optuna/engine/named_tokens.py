"""Parameters that name tokens, which have to be tokens of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsearch_optuna.errors import short


def unknown_token(params: Mapping[str, Any], vocab_size: int) -> str | None:
    """Say which parameter names a token that the model cannot write; None where there is none.

    Such a token would have no effect, silently, and what names it is made for another model. End tokens and suppressed
    tokens are left alone: one that the model does not have never occurs, which is what was asked for.

    Args:
        params: In their canonical form.
        vocab_size: How many tokens the model scores.
    """
    for name, ids_of in _TOKENS_NAMED.items():
        value = params.get(name)
        if value is not None and (beyond := [token for token in ids_of(value) if token >= vocab_size]):
            return f"{name}={short(value)} has token {beyond[0]}, which is none of the model's {vocab_size} tokens"
    return None


def _of_one_or_several(value: int | Sequence[int]) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


def _of_sequences(value: Sequence[Sequence[int]]) -> list[int]:
    return [token for sequence in value for token in sequence]


def _of_biases(value: Sequence[tuple[Sequence[int], float]]) -> list[int]:
    return [token for sequence, _ in value for token in sequence]


_TOKENS_NAMED: Mapping[str, Callable[[Any], Sequence[int]]] = {
    "forced_bos_token_id": _of_one_or_several,
    "forced_eos_token_id": _of_one_or_several,
    "bad_words_ids": _of_sequences,
    "sequence_bias": _of_biases,
    "stop_token_sequences": _of_sequences,
}
