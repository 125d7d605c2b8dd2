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
