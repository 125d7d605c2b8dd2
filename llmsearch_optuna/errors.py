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

    An engine raises it, or gives it as the error of a request. Nothing about the row or the trial is stored: the study
    ends with this message, and the same call goes on with it later.

    Args:
        message: What does not answer, with its address, and what it said.
        retry_after: Seconds that it asked to wait, where it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
