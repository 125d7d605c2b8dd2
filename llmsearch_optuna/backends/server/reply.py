"""What a server's answer means: its text, how many tokens it took, and why it ended.

Every shape that servers are known to answer in has a meaning here; a shape that has none is no answer, and is asked
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.backends.server.failures import Failure, RequestFailedError, failure_in_body
from llmsearch_optuna.engine.request import Completion, FinishReason

UNKNOWN_TOKEN_ID = 2**32 - 1
"""Stands for each token of which a server says that there is one, but not which."""

_ENDED: Mapping[str, FinishReason] = {
    "stop": "eos",
    "end_turn": "eos",
    "eos": "eos",
    "eos_token": "eos",
    "stop_sequence": "stop",
    "tool_calls": "eos",
    "function_call": "eos",
    "length": "length",
    "max_tokens": "length",
}
_UNFINISHED = (None, "", "abort", "error", "cancelled", "insufficient_system_resource")


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        completion: What it says.
        model: What the server calls the model that answered; empty where it does not say.
        prompt_tokens: By the server's count; 0 where it does not say.
        cached_tokens: Those of them that it did not compute again.
        completion_tokens: By the server's count, reasoning included; None where it says none, or one that cannot be.
        has_reasoning: Whether the model thought aloud beside the text.
    """

    completion: Completion
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int | None
    has_reasoning: bool


def read_reply(body: Any, *, max_new_tokens: int, beams: int = 1) -> Reply:
    """Return what an answer says.

    Text is the message's content. Where there is none, it is what the model refused with, or its tool calls as JSON,
    or nothing (a model that spent all its tokens on reasoning).

    Args:
        body: The JSON of the answer.
        max_new_tokens: How many tokens were asked for; a count above it is wrong.
        beams: How many completions of the row the server counts together.

    Raises:
        RequestFailedError: This is no completion; says whether asking again may help.
    """
    if not isinstance(body, Mapping):
        raise _not_now(f"the answer is no object: {str(body)[:200]!r}")
    if isinstance(body.get("error"), Mapping):
        raise RequestFailedError(failure_in_body(body["error"]))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        raise _not_now("the answer has no choices")
    message = choice.get("message") if "message" in choice else {"content": choice.get("text")}
    if not isinstance(message, Mapping):
        raise _not_now("the answer has no message")
    text = _text(message)
    ids = _token_ids(choice)
    reasoning = _reasoning(message)
    prompt_tokens, cached, counted = _usage(body, most=max_new_tokens, beams=beams, has_text=bool(text))
    generated = len(ids) if ids is not None else counted or 0
    return Reply(
        completion=Completion(
            text,
            ids if ids is not None else (UNKNOWN_TOKEN_ID,) * (counted or 0),
            _finish_reason(choice),
            prompt_tokens,
            reasoning,
            _reasoning_tokens(body, generated) if reasoning is not None else 0,
        ),
        model=str(body.get("model") or ""),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached,
        completion_tokens=len(ids) if ids is not None else counted,
        has_reasoning=bool(reasoning),
    )


def _finish_reason(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if reason in _UNFINISHED:
        raise _not_now(f"the answer broke off (finish_reason {reason!r})")
    if reason == "content_filter":
        raise RequestFailedError(Failure("never", "the server's content filter withheld the answer"))
    # vLLM and SGLang name the stop string; a token that ended the text is a number there.
    if reason == "stop" and any(isinstance(choice.get(name), str) for name in ("stop_reason", "matched_stop")):
        return "stop"
    return _ENDED.get(str(reason), "eos")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if isinstance(content, str) and content:
        return content
    if isinstance(refused := message.get("refusal"), str):
        return refused
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    called = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    if called:
        shown = [{"name": call.get("name"), "arguments": call.get("arguments")} for call in called]
        return json.dumps(shown, ensure_ascii=False)
    return ""


def _reasoning(message: Mapping[str, Any]) -> str | None:
    """What the server says that the model thought, under either of the names that servers give it."""
    found = [message.get(name) for name in ("reasoning_content", "reasoning")]
    return next((text for text in found if isinstance(text, str) and text), None)


def _reasoning_tokens(body: Mapping[str, Any], generated: int) -> int:
    """By the server's count, among the details of the usage, or, from SGLang, in the usage itself; 0 for none."""
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return 0
    places = (usage.get("completion_tokens_details"), usage)
    counts = [_count(place.get("reasoning_tokens")) for place in places if isinstance(place, Mapping)]
    return min(next((count for count in counts if count), 0), generated)


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or any(_count(token) is None for token in ids):
        return None
    return tuple(ids)


def _usage(body: Mapping[str, Any], *, most: int, beams: int, has_text: bool) -> tuple[int, int, int | None]:
    """Prompt tokens, those of them that were cached, and generated tokens; None for a count that cannot be."""
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return 0, 0, None
    details = usage.get("prompt_tokens_details")
    prompt_tokens = _count(usage.get("prompt_tokens")) or 0
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    generated = _count(usage.get("completion_tokens"))
    # One more than asked for: some servers count the token that ended the text.
    if generated is None or generated > beams * (most + 1) or (generated == 0 and has_text):
        generated = None
    elif beams > 1:
        generated = -(-generated // beams)
    return prompt_tokens, min(cached or 0, prompt_tokens), generated


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < UNKNOWN_TOKEN_ID
    return value if is_count else None


def _not_now(reason: str) -> RequestFailedError:
    return RequestFailedError(Failure("not now", reason))
