"""The ways in which a server can fail a request, and what each of them means for a study.

*Not now*: the same request may succeed later; it is tried again. *Never*: this request cannot succeed, so the row
fails. *Stop*: no request can succeed before a person has changed something, so the study ends and can go on later.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import openai

Kind = Literal["not now", "never", "stop"]

_LONGEST_QUOTE = 500
_RETRY_LATER = (408, 409, 425, 429)
_NO_REQUEST_CAN = (401, 403, 404, 405, 407)
_UNKNOWN_ISSUERS = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate that signs itself, or whose issuer is not known."""

_TRUST_ITS_ISSUER = (
    "; if you trust who issued it, name a file with the issuer's certificate in SSL_CERT_FILE (or a folder of such in "
    "SSL_CERT_DIR). Certificates are always checked"
)


@dataclass(frozen=True)
class Failure:
    """Why a request has no completion.

    Attributes:
        kind: What it means for the study.
        reason: In words; the server's own where it said any.
        retry_after: Seconds that the server asked to wait.
        is_overload: Whether fewer requests at once may help.
    """

    kind: Kind
    reason: str
    retry_after: float | None = None
    is_overload: bool = False


class RequestFailedError(Exception):
    """A request has no completion; carries why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def failure_of(error: Exception) -> Failure:
    """Say what an exception of the client means."""
    if isinstance(error, RequestFailedError):
        return error.failure
    if isinstance(error, openai.APITimeoutError):
        return Failure("not now", "no answer in time", is_overload=True)
    if isinstance(error, openai.APIConnectionError):
        if (problem := _certificate_problem(error)) is not None:
            return Failure("stop", problem)
        return Failure("not now", f"no connection: {error.__cause__ or error}")
    if isinstance(error, openai.APIStatusError):
        return _failure_of_status(error)
    if isinstance(error, openai.APIResponseValidationError | json.JSONDecodeError | UnicodeDecodeError):
        return Failure("not now", f"the answer is no JSON: {str(error)[:_LONGEST_QUOTE]}")
    return Failure("stop", f"{type(error).__name__}: {error}")


def failure_in_body(error: Mapping[str, Any]) -> Failure:
    """Say what an error means that came in the body of a successful answer, as gateways send it."""
    code = error.get("code")
    reason = _words(error)
    if isinstance(code, int) and not isinstance(code, bool):
        return _failure_of_code(code, reason, None)
    return Failure("not now", reason)


def _failure_of_status(error: openai.APIStatusError) -> Failure:
    status, headers = error.status_code, error.response.headers
    if 300 <= status < 400:
        return Failure("stop", f"it redirects to {headers.get('location')!r}; give that address if you trust it")
    if error.code == "insufficient_quota":
        return Failure("stop", _words(error.body or error.message))
    return _failure_of_code(status, _words(error.body or error.message), _seconds(headers.get("retry-after")))


def _failure_of_code(status: int, words: str, retry_after: float | None) -> Failure:
    reason = f"{status}: {words}"
    if status in _RETRY_LATER or status >= 500:
        return Failure("not now", reason, retry_after, is_overload=status in (408, 429, 503, 504))
    return Failure("stop" if status in _NO_REQUEST_CAN else "never", reason)


def _certificate_problem(error: BaseException) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            remedy = _TRUST_ITS_ISSUER if seen.verify_code in _UNKNOWN_ISSUERS else ""
            return f"its certificate cannot be trusted: {seen.verify_message}{remedy}"
        seen = seen.__cause__ or seen.__context__
    return None


def _words(body: object) -> str:
    """What the server said, from any of the shapes in which servers say it."""
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    said = inner.get("message") or inner.get("detail") or inner if isinstance(inner, Mapping) else inner
    return str(said).strip()[:_LONGEST_QUOTE] or "no reason given"


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None
