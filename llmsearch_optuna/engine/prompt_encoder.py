"""From the text of a prompt to its token ids: special tokens, the context's length, what prompts share.

The engine asks for ids here and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.errors import DecodingError, InputError
from llmsearch_optuna.models.tokenization import Positions, PromptTokens, TokenIds


class PromptEncoder:
    """Tokenizes each prompt once.

    Args:
        tokens: Of the model's tokenizer.
        positions: How many tokens the model has room for.
        embeddings: How many tokens the model's input embedding knows; None where that is not known.
    """

    def __init__(self, tokens: PromptTokens, positions: Positions, embeddings: int | None = None) -> None:
        self.tokens = tokens
        self._embeddings = embeddings
        self._positions = positions
        self._special = tuple(token for token in tokens.tokenizer.all_special_tokens if token)

    def encode(self, request: Request) -> TokenIds:
        """The token ids of a request's prompt.

        Raises:
            DecodingError: The prompt is empty, or the model has no room for it and its new tokens.
            InputError: The prompt has a token that the model's embedding does not know: the tokenizer is another's.
        """
        add = request.add_special_tokens
        if add is None:
            add = not request.prompt.startswith(self._special)
        ids = self.tokens.ids(request.prompt, add, request.encode_args)
        self._check_known(request, ids)
        self._check(request, len(ids))
        return ids

    def _check_known(self, request: Request, ids: TokenIds) -> None:
        if self._embeddings is None or not ids or (token := max(ids)) < self._embeddings:
            return
        name = self.tokens.tokenizer.convert_ids_to_tokens(token)
        raise InputError(
            f"row {request.row}: the prompt has token {token} ({name!r}), but the model's embedding knows "
            f"{self._embeddings} tokens; give the tokenizer that belongs to the model, or "
            "enlarge the embedding with model.resize_token_embeddings(len(tokenizer))"
        )

    def _check(self, request: Request, tokens: int) -> None:
        if not tokens:
            raise DecodingError(f"row {request.row}: the prompt is empty after tokenization")
        problem = self._positions.problem(tokens, request.params.max_new_tokens)
        if problem is not None:
            raise DecodingError(f"row {request.row}: {problem}")


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
