"""Prompts that an earlier session of a study has rendered with the chat template, so that this one need not.

A chat template takes most of the time in which many rows are prepared. What it makes of them depends on what it is
given, and a digest of that says whether the prompts that the study has stored are still the ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llmsearch_optuna.task.content_hash import content_hash
from llmsearch_optuna.task.prompts import Content, ReadyPrompt, depends_on_the_date

_RENDERERS = ("transformers", "jinja2")


@dataclass(frozen=True)
class RenderedPrompts:
    """What a study has stored of its prompts.

    Attributes:
        rendering: What `rendering_digest` said when they were rendered; empty where nothing is known of that.
        texts: Row number -> prompt.
        content: The `content_hash` of the texts as they were rendered, in the order of the rows.
    """

    rendering: str
    texts: Mapping[int, str]
    content: str

    def of(self, rendering: str, rows: int) -> list[str] | None:
        """Return the prompts of all rows; None where they were rendered from something else, or are not all there.

        Args:
            rendering: Of what is to be rendered now.
            rows: How many there are.
        """
        if not rendering or rendering != self.rendering or self.texts.keys() != set(range(rows)):
            return None
        texts = [self.texts[row] for row in range(rows)]
        return texts if content_hash(texts) == self.content else None


def rendering_digest(
    contents: Sequence[Content],
    tokenizer: Any,
    *,
    system: str | None,
    chat_template: bool | Mapping[str, Any] | None,
) -> str:
    """Return a digest of all that the chat template is given; empty where none is rendered, or that is not all.

    Args:
        contents: What the prompter made of each row.
        tokenizer: Has the template.
        system: The system message before each.
        chat_template: Whether to wrap, or variables for the template.
    """
    template = getattr(tokenizer, "chat_template", None)
    own = getattr(type(tokenizer), "apply_chat_template", None)
    if not template or chat_template is False or getattr(own, "__module__", "") != _TRANSFORMERS_OWN:
        return ""
    if depends_on_the_date(tokenizer) or "strftime_now" in str(chat_template):
        return ""
    if any(isinstance(content, ReadyPrompt) for content in contents):
        return ""
    versions = [metadata.version(name) for name in ("llmsearch-optuna", *_RENDERERS)]
    return content_hash([versions, template, dict(tokenizer.special_tokens_map), system, chat_template, *contents])


_TRANSFORMERS_OWN = "transformers.tokenization_utils_base"
"""Where `apply_chat_template` is at home; a tokenizer with one of its own may render by other rules."""
