"""Lines for a terminal: whatever texts of studies, models and datasets are in them, they drive nothing there."""

from __future__ import annotations

import typer

from llmsearch_optuna.progress import printable
from llmsearch_optuna.redaction import redacted


def say(text: str, *, err: bool = False) -> None:
    """Print lines: control and direction characters as escapes, addresses without their passwords."""
    typer.echo(printable_lines(redacted(text)), err=err)


def printable_lines(text: str) -> str:
    """The text with control and direction characters as escapes, but for the ends of lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
