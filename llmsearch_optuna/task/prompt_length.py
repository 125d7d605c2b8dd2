"""How many tokens prompts have, and what becomes of those that have too many.

Tokens are counted as the engine will make them, with the user's own arguments for the tokenizer. What stands in a
prompt is made elsewhere; here its longest column only gets shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.models.tokenization import PromptTokens
from llmsearch_optuna.task.dataset import Row
from llmsearch_optuna.task.prompts import ReadyPrompt


@dataclass(frozen=True)
class TokenCounter:
    """Counts a prompt's tokens.

    Attributes:
        tokens: Tokenizes each prompt once.
        encode_args: What the user wants the tokenizer to be called with.
    """

    tokens: PromptTokens
    encode_args: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, text: str, add_special_tokens: bool) -> int:
        """How many tokens the model will see."""
        return len(self.tokens.ids(text, add_special_tokens, self.encode_args))

    def of(self, prompt: ReadyPrompt) -> int:
        """The same for a prompt that is ready."""
        return self(prompt.text, not prompt.from_chat_template)

    def of_all(self, prompts: Iterable[ReadyPrompt]) -> list[int]:
        """The same for many prompts at once."""
        return self.tokens.count(((prompt.text, not prompt.from_chat_template) for prompt in prompts), self.encode_args)

    @property
    def truncates(self) -> bool:
        """Whether the tokenizer itself is set to truncate."""
        return self.encode_args.get("truncation") not in (None, False, "do_not_truncate")

    def whole(self) -> TokenCounter:
        """A counter of all tokens, those included that the tokenizer is set to truncate."""
        kept = {name: value for name, value in self.encode_args.items() if name not in ("truncation", "max_length")}
        return TokenCounter(self.tokens, kept)


def check_limit(max_prompt_tokens: float | None) -> None:
    """Raise InputError unless this is None, a number of tokens, or a quantile between 0 and 1."""
    limit = max_prompt_tokens
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1):
        return
    if not isinstance(limit, float) or not 0.0 < limit < 1.0:
        raise InputError(
            f"max_prompt_tokens={short(limit)} must be a number of tokens from 1 on, or between 0 and 1: that quantile "
            "of the prompts' lengths"
        )


def limit_in_tokens(max_prompt_tokens: float, counts: Sequence[int]) -> int:
    """The limit as a number of tokens; a quantile is the least length that so large a share of prompts keeps to.

    >>> limit_in_tokens(0.75, [10, 40, 20, 30])
    30
    """
    if isinstance(max_prompt_tokens, int):
        return max_prompt_tokens
    return int(np.sort(np.asarray(counts))[math.ceil(max_prompt_tokens * len(counts)) - 1])


def cut_to_fit(
    row: Row, limit: int, *, make: Callable[[Row], ReadyPrompt], count: Callable[[ReadyPrompt], int]
) -> ReadyPrompt:
    """Shorten the longest text column of a row from its beginning: template, instruction and the last words stay.

    Args:
        row: A row whose prompt is too long.
        limit: The most tokens that it may have.
        make: Makes a row's prompt.
        count: Counts a prompt's tokens.

    Raises:
        InputError: Its prompt is too long even without that column.
    """
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    longest = max(texts, key=lambda name: len(texts[name]), default=None)
    fitting = None
    if longest is not None:
        least, most = 0, len(texts[longest])
        while least <= most:
            kept = (least + most) // 2
            made = make({**row, longest: texts[longest][len(texts[longest]) - kept :]})
            if count(made) <= limit:
                fitting, least = made, kept + 1
            else:
                most = kept - 1
    if fitting is None:
        raise InputError(
            f"its prompt has more than max_prompt_tokens={limit} tokens even without its longest column ({longest!r}); "
            "raise max_prompt_tokens or shorten the template"
        )
    return fitting
