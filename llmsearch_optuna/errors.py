"""What the library raises for things that a user can mend.

Every message says what was wrong, shows the value, and says what to do. The command line prints these
messages without a traceback; anything else that reaches a user is a bug of ours.
"""

from __future__ import annotations

from llmsearch_optuna.redaction import redacted


class LlmsearchError(Exception):
    """Base of all errors that this library raises on purpose.

    Passwords in addresses stand in it as ``***``, and halves of characters as escapes.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(_encodable(arg)) if isinstance(arg, str) else arg for arg in args))


class InputError(LlmsearchError, ValueError):
    """An argument, a file or a dataset cannot be used as it is."""


class StudyError(LlmsearchError, RuntimeError):
    """A study cannot be opened, resumed or written as it is."""


class DecodingError(LlmsearchError, RuntimeError):
    """A prompt could not be decoded under these parameters; the study goes on without this trial."""


class EngineUnavailableError(LlmsearchError, RuntimeError):
    """What decodes or scores does not answer for now (no connection, timeout); the request itself is not at fault.

    An engine or a metric raises it. Nothing about the row or the trial is stored: the study
    ends with this message, and the same call goes on with it later.

    Args:
        message: What does not answer, with its address, and what it said.
        retry_after: Seconds that it asked to wait, where it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


_LONGEST_ERROR = 2000


def describe_error(error: BaseException) -> str:
    """``ValueError: what it says``, whatever a user's exception does when it is asked for its text.

    It is cut where it is long, and what no database takes (halves of characters, NUL) stands in it as an escape.
    """
    try:
        said = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        said = "(its text cannot be made)"
    said = said if len(said) <= _LONGEST_ERROR else said[: _LONGEST_ERROR - 1] + "…"
    said = _encodable(said).replace("\x00", "\\x00")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def is_one_of(value: object, *words: str) -> bool:
    """Whether a value is one of these words; arrays and other values whose ``==`` is no yes or no are none.

    >>> is_one_of("auto", "auto", "none"), is_one_of([], "auto")
    (True, False)
    """
    return isinstance(value, str) and value in words


def short(value: object, length: int = 200) -> str:
    """Return a value as a message shows it, cut to ``length`` letters, whatever its ``repr`` does."""
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as a number of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 1] + "…"
