"""Types that several rooms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["maximize", "minimize"]

DialectName = Literal["vllm", "sglang", "llama.cpp", "ollama", "transformers", "openai"]
"""The kinds of servers with OpenAI's interface."""

Bounds = tuple[float, float]


FinishReason = Literal["eos", "stop", "length"]
"""Why a completion ended: the model's own token, a stop string, or its length."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt as messages, for what applies a chat template of its own.

    Attributes:
        messages: As in OpenAI's interface: dicts with a role, a content, and whatever else a template reads.
        template_kwargs: Variables of the template, such as ``{"enable_thinking": False}``.
    """

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
