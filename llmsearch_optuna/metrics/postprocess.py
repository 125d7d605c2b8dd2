"""What may be cut off completions before they are scored, by name: study files cannot hold functions.

Each takes a text and returns a text. Where what is looked for is not there, the text stays as it is, white space at its
ends aside: a metric is to see what the model wrote.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.errors import InputError, short

Postprocess = Callable[[str], str]

_REASONING = re.compile(r"<(think|thinking|reasoning|thought)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_END_OF_REASONING = re.compile(r"\A.*</(?:think|thinking|reasoning|thought)>", re.DOTALL | re.IGNORECASE)
_UNFINISHED_REASONING = re.compile(r"<(?:think|thinking|reasoning|thought)>.*\Z", re.DOTALL | re.IGNORECASE)
_CODE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)^[ \t]*\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


def strip(text: str) -> str:
    """Return the text without white space at its ends."""
    return text.strip()


def strip_reasoning(text: str) -> str:
    """Return the text without what a model thinks aloud: ``<think>…</think>`` and its likes, finished or not.

    >>> strip_reasoning("<think>4 and 3 …</think>\\n7")
    '7'
    """
    # Templates often put the opening tag into the prompt.
    without = _END_OF_REASONING.sub("", _REASONING.sub("", text))
    return _UNFINISHED_REASONING.sub("", without).strip()


def first_line(text: str) -> str:
    """Return the first line that holds anything.

    >>> first_line("\\n Paris. \\nIt lies on the Seine.")
    'Paris.'
    """
    return next(iter(text.strip().splitlines()), "").strip()


def last_line(text: str) -> str:
    """Return the last line that holds anything."""
    return next(reversed(text.strip().splitlines()), "").strip()


def extract_code(text: str) -> str:
    """Return the contents of the first fenced block of code.

    >>> extract_code("Here it is:\\n```python\\nprint(1)\\n```\\nIt prints 1.")
    'print(1)'
    """
    found = _CODE.search(text)
    return found[2].rstrip("\n") if found else text.strip()


def json_only(text: str) -> str:
    """Return the first JSON object or array in the text, as it is written there.

    >>> json_only('Sure! {"a": [1, 2]} I hope this helps.')
    '{"a": [1, 2]}'
    """
    decoder = json.JSONDecoder()
    place = 0
    while found := re.compile(r"[{\[]").search(text, place):
        try:
            _, end = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            place = found.end()
        else:
            return text[found.start() : end]
    return text.strip()


POSTPROCESSES: dict[str, Postprocess] = {
    function.__name__: function for function in (strip, strip_reasoning, first_line, last_line, extract_code, json_only)
}
"""By the names that ``postprocess=`` takes."""


@dataclass(frozen=True)
class NamedPostprocess:
    """One or several of them, the first one first; known by their names in a study's fingerprint."""

    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """What describes it in every process."""
        return "+".join(self.names)

    def __call__(self, text: str) -> str:
        """Return what they make of a text, one after the other."""
        for name in self.names:
            text = POSTPROCESSES[name](text)
        return text


def postprocess_of(given: Any) -> Postprocess | None:
    """Return the function that ``postprocess=`` means: a function, a name, or several names.

    Raises:
        InputError: It is none of them.
    """
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"postprocess={short(given)} must be a function from text to text, one of {', '.join(POSTPROCESSES)}, or a "
            "list of these"
        )
    for name in names:
        if name not in POSTPROCESSES:
            near = difflib.get_close_matches(name, POSTPROCESSES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"there is no postprocess {name!r}{hint}; there are {', '.join(POSTPROCESSES)}")
    return NamedPostprocess(tuple(names))
