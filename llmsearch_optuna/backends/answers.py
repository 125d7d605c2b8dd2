"""What users' engines answer and raise, sorted: completions, rows that cannot be decoded, and engines that are away."""

from __future__ import annotations

import errno
import operator
import urllib.error
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from typing import Any, cast, get_args

from llmsearch_optuna.engine.request import Completion, FinishReason, Request
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, describe_error, short

_BUSY_CODES = frozenset({408, 425, 429})
_AWAY = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
# Of httpx, requests, urllib3, aiohttp, openai, ray and vllm, none of which need be installed.
_AWAY_NAMES = frozenset(
    {
        *("APIConnectionError", "APITimeoutError", "RateLimitError", "InternalServerError", "ServiceUnavailableError"),
        *("TransportError", "Timeout", "HTTPError.Timeout", "NewConnectionError", "MaxRetryError", "ProtocolError"),
        *("ClientConnectionError", "ServerTimeoutError", "RayActorError", "WorkerCrashedError", "EngineDeadError"),
        *("gaierror", "IncompleteRead", "RemoteDisconnected"),
    }
)


def checked_completion(given: Any) -> Completion:
    """Return what an engine gave for one prompt as a completion.

    Raises:
        DecodingError: It is neither a text nor a `Completion`, or one of its parts is of another kind than it must be.
    """
    if isinstance(given, str):
        return Completion(str(given))
    text = getattr(given, "text", None)
    if not isinstance(text, str):
        what = f"a completion whose text is {short(text)}" if hasattr(given, "text") else f"{short(given)}"
        raise DecodingError(f"the engine returned {what} for a prompt; it must return a text or a Completion for each")
    reason = getattr(given, "finish_reason", None) or "eos"
    if reason not in get_args(FinishReason):
        raise DecodingError(f"the engine returned finish_reason={short(reason)}; it must be 'eos', 'stop' or 'length'")
    ids, prompt_tokens = _token_ids(given), _count(getattr(given, "prompt_tokens", 0), "prompt_tokens")
    reasoning = getattr(given, "reasoning", None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise DecodingError(f"the engine returned reasoning={short(reasoning)}; it must be a text or None")
    thought = min(_count(getattr(given, "reasoning_tokens", 0), "reasoning_tokens"), len(ids))
    return Completion(text, ids, cast(FinishReason, reason), prompt_tokens, reasoning, thought)


def answer_apart(completion: Completion, request: Request) -> Completion:
    """Return a completion with its reasoning apart, where whatever decoded it has left both in one text.

    How many tokens were thought is known where the tokens are, or where the thought never ended; else it is 0.
    """
    span = request.reasoning
    if span is None:
        return completion
    if completion.reasoning is None:
        answer, reasoning = span.split_text(completion.text, opened=span.opened_by_text(request.prompt))
        if reasoning is None:
            return completion
        completion = replace(completion, text=answer, reasoning=reasoning)
    if completion.reasoning_tokens:
        return completion
    thought = span.tokens_of(completion.token_ids)
    if thought is None:
        thought = 0 if completion.text else len(completion.token_ids)
    return replace(completion, reasoning_tokens=thought)


def unavailable(error: BaseException) -> EngineUnavailableError | None:
    """Return what a user is told where an error says that the engine is away or busy for now; None for all others.

    Connections that fail, timeouts, HTTP 408, 425, 429 and 5xx, and processes that have died are of this kind,
    whichever library raises them, also where they are the cause of what was raised.
    """
    if isinstance(error, EngineUnavailableError):
        return error
    for cause in _causes(error):
        if _is_away(cause):
            after = getattr(cause, "retry_after", None)
            return EngineUnavailableError(
                f"the engine does not answer: {describe_error(error)}",
                retry_after=float(after) if isinstance(after, int | float) else None,
            )
    return None


def _is_away(error: BaseException) -> bool:
    code = _status_code(error)
    if code is not None:
        return code in _BUSY_CODES or code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, str):
        return False
    if isinstance(error, ConnectionError | TimeoutError | BrokenExecutor | EngineUnavailableError):
        return True
    return getattr(error, "errno", None) in _AWAY or any(kind.__name__ in _AWAY_NAMES for kind in type(error).__mro__)


def _status_code(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            code = getattr(holder, name, None)
            if isinstance(code, int) and not isinstance(code, bool) and 100 <= code < 600:
                return code
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        reason = getattr(found, "reason", None)  # urllib's own way of passing an error on
        found = reason if isinstance(reason, BaseException) else found.__cause__


def _token_ids(given: Any) -> tuple[int, ...]:
    ids = getattr(given, "token_ids", ())
    try:
        found = tuple(operator.index(token) for token in (() if ids is None else ids))
    except TypeError:
        raise DecodingError(f"the engine returned token_ids={short(ids)}; they must be whole numbers") from None
    if any(not 0 <= token < 1 << 32 for token in found):
        raise DecodingError(f"the engine returned token_ids={short(ids)}; a token's number is from 0 on")
    return found


def _count(given: Any, name: str) -> int:
    try:
        return min(max(operator.index(given), 0), (1 << 31) - 1)
    except TypeError:
        raise DecodingError(f"the engine returned {name}={short(given)}; it must be a whole number") from None
