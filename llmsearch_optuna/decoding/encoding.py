"""From the text of a prompt to its token ids: special tokens, the context's length, what prompts share.

The engine asks for ids here and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from llmsearch_optuna.decoding.requests import Request
from llmsearch_optuna.errors import DecodingError

TokenIds = tuple[int, ...]


class PromptEncoder:
    """Tokenizes each prompt once.

    Args:
        tokenizer: The model's.
        context: Most tokens that prompt and completion may have together; None where there is no limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._special = tuple(token for token in tokenizer.all_special_tokens if token)
        self._known: dict[tuple[str, bool], TokenIds] = {}

    def encode(self, request: Request) -> TokenIds:
        """The token ids of a request's prompt.

        Raises:
            DecodingError: The prompt is empty, or does not fit into the context beside its new tokens.
        """
        add = request.add_special_tokens
        key = (request.prompt, not request.prompt.startswith(self._special) if add is None else add)
        ids = self._known.get(key)
        if ids is None:
            encoded = self._tokenizer(request.prompt, add_special_tokens=key[1])
            ids = self._known[key] = tuple(encoded["input_ids"])
        self._check(request, len(ids))
        return ids

    def _check(self, request: Request, tokens: int) -> None:
        if not tokens:
            raise DecodingError(f"row {request.row}: the prompt is empty after tokenization")
        new = request.params.max_new_tokens
        if self._context is not None and tokens + new > self._context:
            raise DecodingError(
                f"row {request.row}: {tokens} prompt tokens and max_new_tokens={new} exceed the model's context of "
                f"{self._context}; shorten the prompt or lower max_new_tokens"
            )


def common_prefix(prompts: Iterable[TokenIds]) -> TokenIds:
    """The longest run of tokens that all prompts begin with, shorter than each of them; empty for a single one.

    >>> common_prefix([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 9)])
    (1, 2)
    """
    ordered = list(prompts)
    if len(ordered) < 2:
        return ()
    # whatever the first and the last in sorted order share, all between them share
    first, last = min(ordered), max(ordered)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return first[: min(len(list(same)), min(map(len, ordered)) - 1)]
