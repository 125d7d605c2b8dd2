"""Text to token ids, as a prompt is given to the model."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.errors import InputError, short


def encode(tokenizer: Any, text: str, add_special_tokens: bool, args: Mapping[str, Any]) -> TokenIds:
    """The token ids of a text; the user's own ``args`` for the tokenizer have the last word."""
    return tuple(tokenizer(text, **{"add_special_tokens": add_special_tokens, **args})["input_ids"])


TEXTS_AT_ONCE = 1024
"""Prompts in one call of a tokenizer: more would only take memory."""


class PromptTokens:
    """The token ids of prompts, each computed once, whoever asks: to count them, or to decode.

    Args:
        tokenizer: The model's; it must not be changed while this is in use.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[bool, str], dict[str, array[int]]] = defaultdict(dict)

    def ids(self, text: str, add_special_tokens: bool, args: Mapping[str, Any]) -> TokenIds:
        """Return the token ids of one prompt; see `encode`."""
        known = self._of(add_special_tokens, args)
        found = known.get(text)
        if found is None:
            found = known[text] = array("I", encode(self.tokenizer, text, add_special_tokens, args))
        return tuple(found)

    def count(self, texts: Iterable[tuple[str, bool]], args: Mapping[str, Any]) -> list[int]:
        """Return how many tokens prompts have, tokenizing those that are new in batches.

        Args:
            texts: Each with whether special tokens are added.
            args: The user's own arguments for the tokenizer.
        """
        wanted = list(texts)
        for add_special_tokens in (False, True):
            known = self._of(add_special_tokens, args)
            new = dict.fromkeys(text for text, add in wanted if add == add_special_tokens and text not in known)
            for group in _groups(new, TEXTS_AT_ONCE):
                known.update(zip(group, self._encoded(group, add_special_tokens, args), strict=True))
        return [len(self._of(add, args)[text]) for text, add in wanted]

    def most(self, text: str, add_special_tokens: bool) -> int | None:
        """Return a number of tokens that a prompt cannot exceed, without tokenizing it; None where there is no telling.

        Every token of a byte-level tokenizer stands for a byte at least, and every part that it splits a text into may
        begin with a space that it adds.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        growth = _GROWTH.get(type(backend.normalizer).__name__)
        if growth is None:
            return None
        special = self.tokenizer.num_special_tokens_to_add(pair=False) if add_special_tokens else 0
        return int(2 * growth * len(text.encode()) + special)

    def _of(self, add_special_tokens: bool, args: Mapping[str, Any]) -> dict[str, array[int]]:
        return self._known[add_special_tokens, repr(args) if args else ""]

    def _encoded(self, texts: list[str], add_special_tokens: bool, args: Mapping[str, Any]) -> list[array[int]]:
        if not getattr(self.tokenizer, "is_fast", False):  # others gain nothing, and need not take several
            return [array("I", encode(self.tokenizer, text, add_special_tokens, args)) for text in texts]
        made = self.tokenizer(texts, **{"add_special_tokens": add_special_tokens, **args})["input_ids"]
        return [array("I", ids) for ids in made]


_GROWTH = {"NoneType": 1, "NFC": 3}
"""How much longer a normalizer may make a text, in UTF-8, by the type of the normalizer."""


def _groups(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    remaining = iter(texts)
    while group := list(itertools.islice(remaining, size)):
        yield group


def check_encode_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for calling a tokenizer that have a say here; padding has none, since no row is padded.

    Raises:
        InputError: An argument that changes what the call returns, or is none of the tokenizer's.
    """
    if not isinstance(args, Mapping):
        raise InputError(f"tokenizer_encode_args={short(args)} must be a dict, such as {{'add_special_tokens': False}}")
    strange = [name for name in args if name not in (*_ENCODE_ARGS, *_PADDING)]
    if strange:
        raise InputError(
            f"tokenizer_encode_args may hold {', '.join(_ENCODE_ARGS)} (and padding, which is ignored: no row is "
            f"padded), not {', '.join(map(repr, strange))}"
        )
    return {name: value for name, value in args.items() if name in _ENCODE_ARGS and value is not None}


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


_PADDING = ("padding", "padding_side", "pad_to_multiple_of")


_ENCODE_ARGS = ("add_special_tokens", "truncation", "max_length")


TokenIds = tuple[int, ...]
