"""Text to token ids, as a prompt is given to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.errors import InputError


def encode(tokenizer: Any, text: str, add_special_tokens: bool, args: Mapping[str, Any]) -> TokenIds:
    """The token ids of a text; the user's own ``args`` for the tokenizer have the last word."""
    return tuple(tokenizer(text, **{"add_special_tokens": add_special_tokens, **args})["input_ids"])


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
