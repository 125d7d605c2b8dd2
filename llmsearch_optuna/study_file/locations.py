"""Where in a study file's text something stands, for errors that name the line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def place(text: str, keys: Sequence[Any]) -> str:
    """``, line 7`` for a key of the file; its table's line when the key itself is not there."""
    table, line_of_table = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([\w.\"-]+)\s*\]+", line):
            table = header[1]
            if keys and table == str(keys[0]):
                line_of_table = line_of_table or number
        names = [str(key) for key in keys]
        if (key := re.match(r"\s*([\w\"-]+)\s*=", line)) and [*filter(None, [table]), key[1]] == names[:2]:
            return f", line {number}"
    return f", line {line_of_table}" if line_of_table else ""


def place_of_mention(text: str, message: str, table: str) -> str:
    """The line in a table (or a list of tables, branches) that sets the parameter a message speaks of."""
    mentioned = re.search(r"branch (\d+)", message)
    branch, wanted = 0, int(mentioned[1]) if mentioned else None
    in_table = False
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[+)\s*([\w.-]+)", line):
            in_table = header[2].split(".")[0] == table
            branch += in_table and header[1] == "[["
        key = re.match(r"\s*([\w-]+)\s*=", line)
        if in_table and wanted in (None, branch) and key and re.search(rf"(?<!\w){re.escape(key[1])}(?!\w)", message):
            return f", line {number}"
    return ""
