"""A preview of prepared inputs before anything is decoded: as text, in colour on a terminal, as HTML in a notebook.

Texts of datasets are escaped wherever markup is made of them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text


@dataclass(frozen=True)
class PreviewedRow:
    """One row: its number, the prompt as the model sees it, the reference, and the prompt's tokens where counted.

    Where a task has several prompts, ``variant`` names this one.
    """

    number: int
    prompt: str
    reference: Any
    tokens: int | None = None
    is_cut: bool = False
    variant: str = ""

    @property
    def heading(self) -> str:
        """What stands above the row."""
        counted = "" if self.tokens is None else f", {self.tokens} prompt tokens"
        return f"row {self.number}{counted}{', cut' if self.is_cut else ''}{self.variant and f', {self.variant}'}"


@dataclass(frozen=True, repr=False)
class Preview:
    """The first rows of a task; print it, or let a notebook show it."""

    name: str
    rows_total: int
    rows: tuple[PreviewedRow, ...]
    rows_shown: int = 0

    def __str__(self) -> str:
        parts = [self._heading]
        for row in self.rows:
            parts += [f"--- {row.heading} ---", row.prompt, f">>> reference: {row.reference}"]
        return "\n".join(parts)

    __repr__ = __str__

    def __rich__(self) -> Group:
        """Return what rich prints."""
        panels = [
            Panel(
                Text.assemble(row.prompt, "\n\n", ("reference: ", "bold green"), (str(row.reference), "green")),
                title=row.heading,
                title_align="left",
            )
            for row in self.rows
        ]
        return Group(Text(self._heading, style="bold"), *panels)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr>{_cell(html.escape(row.heading))}{_cell(_text(row.prompt))}{_cell(_text(row.reference))}</tr>"
            for row in self.rows
        )
        return (
            f"<p><b>{html.escape(self._heading)}</b></p>"
            f"<table><tr><th></th><th>prompt</th><th>reference</th></tr>{cells}</table>"
        )

    @property
    def _heading(self) -> str:
        return f"{self.name}: {self.rows_total} rows, the first {self.rows_shown or len(self.rows)}"


def _cell(markup: str) -> str:
    return f"<td style='text-align:left;vertical-align:top'>{markup}</td>"


def _text(value: object) -> str:
    # notebooks break lines in the middle of words unless told otherwise
    style = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
    return f"<pre style='{style}'>{html.escape(str(value))}</pre>"
