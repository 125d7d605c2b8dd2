"""What the library raises for things that a user can mend.

Every message says what was wrong, shows the value, and says what to do. The command line prints these
messages without a traceback; anything else that reaches a user is a bug of ours.
"""


class LlmsearchError(Exception):
    """Base of all errors that this library raises on purpose."""


class InputError(LlmsearchError, ValueError):
    """An argument, a file or a dataset cannot be used as it is."""


class StudyError(LlmsearchError, RuntimeError):
    """A study cannot be opened, resumed or written as it is."""


class DecodingError(LlmsearchError, RuntimeError):
    """A prompt could not be decoded under these parameters; the study goes on without this trial."""


class EngineUnavailableError(LlmsearchError, RuntimeError):
    """What decodes does not answer for now (no connection, timeout, overload); the request itself is not at fault.

    An engine raises it. Nothing about the row or the trial is stored: the study
    ends with this message, and the same call goes on with it later.

    Args:
        message: What does not answer, with its address, and what it said.
        retry_after: Seconds that it asked to wait, where it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


FOREIGN_ERRORS = (Exception, SystemExit)
"""What is caught around a user's own function: without SystemExit a metric that calls ``exit()`` would end the whole
program, and nobody would be told."""


def describe_error(error: BaseException) -> str:
    """``ValueError: what it says``, whatever a user's exception does when it is asked for its text."""
    try:
        said = str(error)
    except FOREIGN_ERRORS:
        said = "(its text cannot be made)"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def short(value: object, length: int = 200) -> str:
    """Return a value as a message shows it, cut to ``length`` letters, whatever its ``repr`` does."""
    try:
        text = repr(value)
    except FOREIGN_ERRORS:  # such as a number of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 1] + "…"
