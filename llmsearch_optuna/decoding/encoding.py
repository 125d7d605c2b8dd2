"""From the text of a prompt to its token ids: special tokens, the context's length, what prompts share.

The engine asks for ids here and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmsearch_optuna.decoding.requests import Request
from llmsearch_optuna.errors import DecodingError, InputError

TokenIds = tuple[int, ...]


_PADDING = ("padding", "padding_side", "pad_to_multiple_of")
_ENCODE_ARGS = ("add_special_tokens", "truncation", "max_length")


def check_encode_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for calling a tokenizer that have a say here; padding has none, since no row is padded.

    Raises:
        InputError: An argument that changes what the call returns, or is none of the tokenizer's.
    """
    strange = [name for name in args if name not in (*_ENCODE_ARGS, *_PADDING)]
    if strange:
        raise InputError(
            f"tokenizer_encode_args may hold {', '.join(_ENCODE_ARGS)} (and padding, which is ignored: no row is "
            f"padded), not {', '.join(map(repr, strange))}"
        )
    return {name: value for name, value in args.items() if name in _ENCODE_ARGS and value is not None}


def encode(tokenizer: Any, text: str, add_special_tokens: bool, args: Mapping[str, Any]) -> TokenIds:
    """The token ids of a text; the user's own ``args`` for the tokenizer have the last word."""
    return tuple(tokenizer(text, **{"add_special_tokens": add_special_tokens, **args})["input_ids"])


@dataclass(frozen=True)
class Positions:
    """How many tokens a model has room for; None where there is no limit.

    Attributes:
        shared: For prompt and completion together: of a decoder-only model.
        prompt: For the prompt alone: of an encoder.
        completion: For the completion alone: of the decoder beside it.
    """

    shared: int | None = None
    prompt: int | None = None
    completion: int | None = None

    @classmethod
    def of(cls, config: Any) -> Positions:
        """Those of a model's configuration; models without absolute positions (T5) have no limits."""
        if not config.is_encoder_decoder:
            return cls(shared=_positions(config.get_text_config()))
        return cls(
            prompt=_positions(config.get_text_config(encoder=True), "max_encoder_position_embeddings"),
            completion=_positions(config.get_text_config(decoder=True), "max_decoder_position_embeddings"),
        )

    def room(self, new: int) -> int | None:
        """How many tokens a prompt may have beside so many new ones; None where there is no limit."""
        return self.prompt if self.shared is None else self.shared - new

    def problem(self, prompt: int, new: int) -> str | None:
        """Why so many prompt tokens and new tokens do not fit; None where they do."""
        if self.shared is not None and prompt + new > self.shared:
            return (
                f"{prompt} prompt tokens and max_new_tokens={new} exceed the model's context of {self.shared}; "
                "shorten the prompt or lower max_new_tokens"
            )
        if self.prompt is not None and prompt > self.prompt:
            return (
                f"{prompt} prompt tokens exceed the {self.prompt} positions of the encoder; shorten the prompt, "
                f"or cut it with max_prompt_tokens={self.prompt}"
            )
        if self.completion is not None and new > self.completion:
            return f"max_new_tokens={new} exceeds the {self.completion} positions of the decoder; lower it"
        return None


def _positions(config: Any, *names: str) -> int | None:
    """What the first of ``names`` says, else the model's own limit, or a lower one that AutoAWQ was given."""
    for limits in (*((name,) for name in names), ("max_position_embeddings", "max_seq_len")):
        found = [limit for name in limits if isinstance(limit := getattr(config, name, None), int) and limit > 0]
        if found:
            return min(found)
    return None


class PromptEncoder:
    """Tokenizes each prompt once.

    Args:
        tokenizer: The model's.
        positions: How many tokens the model has room for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: Positions) -> None:
        self._tokenizer = tokenizer
        self._positions = positions
        self._special = tuple(token for token in tokenizer.all_special_tokens if token)
        self._known: dict[tuple[str, bool, str], TokenIds] = {}

    def encode(self, request: Request) -> TokenIds:
        """The token ids of a request's prompt.

        Raises:
            DecodingError: The prompt is empty, or the model has no room for it and its new tokens.
        """
        add = request.add_special_tokens
        if add is None:
            add = not request.prompt.startswith(self._special)
        key = (request.prompt, add, repr(request.encode_args) if request.encode_args else "")
        ids = self._known.get(key)
        if ids is None:
            ids = self._known[key] = encode(self._tokenizer, request.prompt, add, request.encode_args)
        self._check(request, len(ids))
        return ids

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
