"""`salvage`: what is left of a damaged database, in a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.errors import InputError

_SHOWN = 30
_COUNTED = (("trials", "trials"), ("llmsearch_rows", "decoded rows"), ("llmsearch_items", "prompts"))


def salvage(
    database: Annotated[Path, typer.Argument(metavar="DB", help="A damaged or truncated SQLite file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new file. Default: DB with .salvaged before its suffix.")
    ] = None,
) -> None:
    """Read what is left of a damaged study into a new database, and say what was lost; DB stays as it is."""
    from llmsearch_optuna.storage.salvage import salvage as read_what_is_left

    if not database.name:
        raise InputError(f"{str(database)!r} is no file; give the damaged database")
    target = output or database.with_suffix(f".salvaged{database.suffix}")
    found = read_what_is_left(database, target)
    counts = (f"{found.saved[table]} {name}" for table, name in _COUNTED)
    say(f"{target}: {', '.join(counts)}")
    for line in found.lost[:_SHOWN]:
        say(f"lost: {line}")
    if len(found.lost) > _SHOWN:
        say(f"lost: {len(found.lost) - _SHOWN} more losses of these kinds")
    say("nothing was lost" if not found.lost else f"read it: llmsearch-optuna status {target}")
