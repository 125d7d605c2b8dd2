"""Where a completion ends: end-of-sequence tokens, stop strings, stop token sequences, length.

Only generated tokens count; a prompt may contain a stop string. Each row has its own state, and the text is
cut before what stopped it. How tokens are picked is not known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from llmsearch_optuna.engine.sampling.params import GenerationParams, check_value
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.types import FinishReason

MARGIN_TOKENS = 8
"""Tokens before a possible match that are decoded with it, since decoders treat the start of a text differently."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


_DECODE_ARGS = ("skip_special_tokens", "clean_up_tokenization_spaces", "spaces_between_special_tokens")


def check_decode_args(tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for a tokenizer's ``decode``, tried on a token.

    Raises:
        InputError: It does not take them, or a name is nearly one of transformers': tokenizers ignore what they do not
            know.
    """
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise InputError(
            f"tokenizer_decode_args={short(args)} must be a dict, such as {{'skip_special_tokens': False}}"
        )
    for name in args:
        near = difflib.get_close_matches(name, _DECODE_ARGS, n=1, cutoff=0.7)
        if near and name not in _DECODE_ARGS:
            raise InputError(f"tokenizer_decode_args: {name!r} is no argument of decode; did you mean {near[0]!r}?")
    if args:
        try:
            tokenizer.decode([0], **args)
        except TypeError as problem:
            raise InputError(f"tokenizer_decode_args={dict(args)!r} are not for this tokenizer: {problem}") from problem
    return dict(args)


class Stopper:
    """Finds the end of completions under one set of parameters; shared by all rows.

    A stop string is found in the text as it is shown (without special tokens), also where tokens or multi-byte
    characters straddle its ends. A stop string that is itself the name of a special token (``"<|im_end|>"``) is
    matched as that token, and one that has such names in it (``"<|im_start|>user"``) in the text with these names.

    Args:
        params: Supplies eos_token_ids, stop, stop_token_sequences and max_new_tokens.
        tokenizer: Decodes tokens.
        decode_args: What its ``decode`` is called with; special tokens are skipped unless this says otherwise.
    """

    def __init__(
        self,
        params: GenerationParams,
        tokenizer: PreTrainedTokenizerBase,
        decode_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._finder = _Finder(params.stop, params.stop_token_sequences, tokenizer, decode_args or {})
        self._eos = frozenset(params.eos_token_ids)
        self._max_new_tokens = params.max_new_tokens

    def start(self) -> StopState:
        """The state of a row that has generated nothing yet."""
        return StopState(self)

    def finish(self, token_ids: Iterable[int]) -> tuple[str, FinishReason]:
        """Text and reason of a completion; tokens behind its end are ignored, and one without an end has ``length``."""
        state = self.replay(token_ids)
        return state.text(), state.reason or "length"

    def replay(self, token_ids: Iterable[int]) -> StopState:
        """The state after these tokens, or after those up to the end if they reach beyond it."""
        state = self.start()
        for token in token_ids:
            if state.push(token) is not None:
                break
        return state

    def __call__(self, token_ids: Sequence[int]) -> FinishReason | None:
        """``"stop"`` if the last of these generated tokens completes a stop string or sequence."""
        return "stop" if self._finder.completed(token_ids) else None

    def reason_of(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why the last of these generated tokens is the end, if it is: first eos, then stop, then length."""
        if token_ids[-1] in self._eos:
            return "eos"
        if self._finder.completed(token_ids):
            return "stop"
        return "length" if len(token_ids) >= self._max_new_tokens else None

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The decoded text of a completion, cut before its stop."""
        return self._finder.cut(token_ids)


class StopState:
    """One row's generated tokens.

    Attributes:
        token_ids: All tokens so far, the ending one included.
        reason: Why the row has ended; None while it goes on.
    """

    __slots__ = ("_stopper", "reason", "token_ids")

    def __init__(self, stopper: Stopper) -> None:
        self._stopper = stopper
        self.token_ids: list[int] = []
        self.reason: FinishReason | None = None

    def push(self, token_id: int) -> FinishReason | None:
        """Take the next token; returns why the row ends with it, or None."""
        self.token_ids.append(int(token_id))
        self.reason = self._stopper.reason_of(self.token_ids)
        return self.reason

    def text(self) -> str:
        """The text so far without special tokens, cut before the stop."""
        return self._stopper.text_of(self.token_ids)


class StopOnSequences(StoppingCriteria):
    """Stops each row of ``model.generate`` on its own when it has *generated* a stop.

    Holds no state, so one object serves any number of calls with prompts of the same (padded) length. As with all
    criteria, ``generate`` pads a row after its end only if there is an ``eos_token_id``.

    >>> criteria = StopOnSequences(prompt_length=2, sequences=[[7, 8]])
    >>> criteria(torch.tensor([[7, 8, 1, 7, 8], [1, 7, 8, 1, 1], [1, 7, 8, 7, 8]]), None)
    tensor([ True, False,  True])

    Args:
        prompt_length: Columns of ``input_ids`` before the first generated token.
        sequences: Token sequences that stop.
        stop: Strings that stop; they need ``tokenizer``.
        tokenizer: Decodes tokens.
        decode_args: What its ``decode`` is called with; special tokens are skipped unless this says otherwise.
    """

    def __init__(
        self,
        *,
        prompt_length: int,
        sequences: Sequence[Sequence[int]] = (),
        stop: str | Sequence[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        decode_args: Mapping[str, Any] | None = None,
    ) -> None:
        strings = check_value("stop", stop)
        if strings and tokenizer is None:
            raise InputError(f"stop={stop!r} is text: give tokenizer= too, or token ids as sequences=.")
        if not strings and not sequences:
            raise InputError("There is nothing to stop on. Give sequences= (token ids) or stop= (text).")
        self.prompt_length = prompt_length
        self._finder = _Finder(strings, check_value("stop_token_sequences", sequences), tokenizer, decode_args or {})

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool ``[rows]``: which rows end with a stop. ``input_ids`` is ``[rows, prompt_length + generated]``."""
        generated = input_ids[:, self.prompt_length :]
        done = torch.zeros(generated.shape[0], dtype=torch.bool, device=generated.device)
        for sequence in self._finder.sequences:
            if generated.shape[1] >= len(sequence):
                tail = generated[:, generated.shape[1] - len(sequence) :]
                done |= (tail == torch.tensor(sequence, device=tail.device)).all(dim=1)
        if (self._finder.strings or self._finder.mixed) and generated.shape[1]:
            found = [self._finder.completed(row) for row in generated.tolist()]
            done |= torch.tensor(found, dtype=torch.bool, device=done.device)
        return done


class _Finder:
    """Finds stop strings and stop token sequences at the end of generated tokens."""

    def __init__(
        self,
        strings: Sequence[str],
        sequences: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase | None,
        decode_args: Mapping[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._decode_args = {"skip_special_tokens": True, **decode_args}
        special = {} if tokenizer is None else _special_tokens(tokenizer)
        self._special = frozenset(special.values())
        is_shown = not self._decode_args["skip_special_tokens"]
        self.mixed = () if is_shown else tuple(s for s in strings if s not in special and _has_any(s, special))
        self._names = {token: name for name, token in special.items()}
        self._in_mixed = frozenset(token for name, token in special.items() if any(name in s for s in self.mixed))
        self.strings = tuple(string for string in strings if string not in special and string not in self.mixed)
        named = [(special[string],) for string in strings if string in special]
        self.sequences = tuple(dict.fromkeys([*(tuple(sequence) for sequence in sequences), *named]))
        longest = max((len(string.encode()) for string in (*self.strings, *self.mixed)), default=0)
        self._window = longest + MARGIN_TOKENS  # a token that is shown has at least one byte

    def completed(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop ends with the last token, given that none ended before."""
        for sequence in self.sequences:
            if self._ends_with(token_ids, sequence):
                return True
        if self.mixed and self._mixed_match(token_ids, max(0, len(token_ids) - self._window)) is not None:
            return True
        return bool(self.strings) and self._may_contain_stop(token_ids) and self._contains(self._decode(token_ids))

    def cut(self, token_ids: Sequence[int]) -> str:
        """The text before the stop."""
        if self.mixed and (match := self._mixed_match(token_ids, 0)) is not None:
            place, lead = match
            text = self._decode(token_ids[:place])
            return text.removesuffix(lead)
        matched = [len(sequence) for sequence in self.sequences if self._ends_with(token_ids, sequence)]
        text = self._decode(token_ids[: len(token_ids) - max(matched, default=0)])
        found = [place for place in (text.find(string) for string in self.strings) if place >= 0]
        return text[: min(found, default=len(text))]

    def _mixed_match(self, token_ids: Sequence[int], start: int) -> tuple[int, str] | None:
        """Where the first special token of a stop string with such tokens stands, and what the string has before it."""
        if self._in_mixed.isdisjoint(token_ids[start:]):
            return None
        text, places, run = "", [], list[int]()
        for place, token in enumerate(token_ids[start:], start):
            if token not in self._special:
                run.append(token)
                continue
            text, run = text + (self._decode(run) if run else ""), []
            places.append((len(text), place))
            text += self._names[token]
        text += self._decode(run) if run else ""
        found = [(text.find(string), string) for string in self.mixed if string in text]
        for begin, string in sorted(found):
            at, place = next((at, place) for at, place in places if at >= begin)
            return place, string[: at - begin]
        return None

    def _may_contain_stop(self, token_ids: Sequence[int]) -> bool:
        """Look at the last tokens alone: never misses a stop, and is rarely wrong when it finds one."""
        first = self._window_start(token_ids)
        for start in range(first, max(first - 4, -1), -1):  # a character has up to 4 byte tokens
            text = self._decode(token_ids[start:])
            if _INCOMPLETE not in text:
                return self._contains(text)
        return True

    def _window_start(self, token_ids: Sequence[int]) -> int:
        start = max(0, len(token_ids) - self._window)
        missing = sum(token in self._special for token in token_ids[start:]) if self._special else 0
        while missing and start:
            start -= 1
            missing -= token_ids[start] not in self._special
        return start

    def _contains(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _decode(self, token_ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(list(token_ids), **self._decode_args))

    @staticmethod
    def _ends_with(token_ids: Sequence[int], sequence: Sequence[int]) -> bool:
        size = len(sequence)
        return size <= len(token_ids) and tuple(token_ids[len(token_ids) - size :]) == tuple(sequence)


def _has_any(text: str, names: Iterable[str]) -> bool:
    return any(name and name in text for name in names)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Names and ids of the tokens that are left out of decoded text."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if getattr(token, "special", False):
            special[str(token)] = token_id
    return special
