"""How much the library says: the standard `logging` module under the name `llmsearch_optuna`.

What is said, and by whom, stands in the rooms; a study's progress is no logging (see `progress`).
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.redaction import redacted

Level = Literal["debug", "info", "warning", "error", "critical"]

_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class StderrHandler(logging.Handler):
    """Prints to what is standard error at the time: a notebook and a live view of progress put their own there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, as lines that drive no terminal."""
        try:
            from llmsearch_optuna.progress import printable

            lines = redacted(self.format(record)).split("\n")
            sys.stderr.write("\n".join(map(printable, lines)) + "\n")
        except Exception:
            self.handleError(record)


def set_verbosity(level: Level | int) -> None:
    """Say how much the library tells: ``"debug"`` shows every row's prompt and completion.

    Sets the level of the logger ``llmsearch_optuna``. Where the program has set up no logging, messages go to standard
    error; else they go wherever the program sends them.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` (as it is without this), ``"error"``, ``"critical"``, or a number
            of the ``logging`` module.

    Raises:
        InputError: Another level.
    """
    number = _LEVELS.get(level.lower()) if isinstance(level, str) else level
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"verbosity {level!r} is unknown; give one of {', '.join(map(repr, _LEVELS))}")
    logger = logging.getLogger("llmsearch_optuna")
    logger.setLevel(number)
    if not logger.hasHandlers():
        handler = StderrHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
