"""Metrics of the letters of a text: whether a pattern is found, and whether it is written in the right script."""

from __future__ import annotations

import difflib
import functools
import sys
import unicodedata
from collections import Counter
from typing import Any

import regex as regular

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.by_row import Row, by_row
from llmsearch_optuna.metrics.factories import named
from llmsearch_optuna.metrics.metric import Metric

SEARCH_SECONDS = 10.0
"""A pattern that searches one text for longer (nested repetitions) is an error, not a wait without end."""

LEAST_SHARE = 0.1
"""A script counts as one that a reference is written in from this share of its letters on."""

_LETTERS = ("Lu", "Ll", "Lt", "Lo")
_JAPANESE = frozenset({"HIRAGANA", "KATAKANA", "CJK"})
_ALIASES = {"HAN": "CJK", "CHINESE": "CJK", "KANJI": "CJK", "KOREAN": "HANGUL"}


@named
def regex(*, pattern: str | None = None, whole: bool = False) -> Metric:
    """Return 1 for a text in which a regular expression is found, 0 for any other.

    Patterns are those of the ``regex`` package, which knows all of Python's ``re`` and Unicode's properties besides.

    Args:
        pattern: The expression. Without it the row's reference is one, or several of which any may be found.
        whole: The expression must match the whole text, white space at its ends aside.

    Raises:
        InputError: It is no regular expression.
    """
    try:
        given = None if pattern is None else [_compiled(pattern)]
    except ValueError as problem:
        raise InputError(f"pattern={pattern!r} is {problem}") from None

    def read(reference: Any, row: Row) -> list[Any]:
        return _patterns(reference) if given is None else given

    def score(text: str, patterns: list[Any]) -> float:
        return float(any(_found(pattern, text, whole) for pattern in patterns))

    return by_row("regex", score, read, pattern=pattern, whole=whole)


@named
def language(*, script: str | None = None) -> Metric:
    """Return the share of a text's letters that belong to the scripts of the reference; 0 without any letter.

    The reference is written in the scripts that at least a tenth of its letters belong to. Japanese is written in
    three: a reference with kana allows kanji and both kana. Letters of one script in different widths or styles are
    the same. Languages that share a script (English, French) are not told apart.

    Args:
        script: The script instead of the reference's, such as ``"Cyrillic"``, ``"Arabic"`` or ``"Han"``: the first
            word of the Unicode names of its letters.

    Raises:
        InputError: There is no such script.
    """
    given = None if script is None else _named_script(script)

    def read(reference: Any, row: Row) -> frozenset[str]:
        return _scripts_of_reference(reference) if given is None else given

    def score(text: str, scripts: frozenset[str]) -> float:
        counts = count_scripts(text)
        letters = sum(counts.values())
        return sum(counts[name] for name in scripts) / letters if letters else 0.0

    return by_row("language", score, read, script=script)


def count_scripts(text: str) -> Counter[str]:
    """Return how many letters of each script a text has, by the first word of their Unicode names.

    >>> count_scripts("Да, yes!")
    Counter({'LATIN': 3, 'CYRILLIC': 2})
    """
    letters = unicodedata.normalize("NFKC", text)
    return Counter(_script(letter) for letter in letters if unicodedata.category(letter) in _LETTERS)


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]


def _scripts_of_reference(reference: Any) -> frozenset[str]:
    texts = reference if isinstance(reference, list | tuple) else [reference]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the reference {short(reference)} is no text; give one, or script= to the metric")
    counts = count_scripts(" ".join(texts))
    letters = sum(counts.values())
    if not letters:
        raise ValueError(f"the reference {short(reference)} has no letters; give script= to the metric")
    return _completed(frozenset(name for name, count in counts.items() if count >= LEAST_SHARE * letters))


def _completed(scripts: frozenset[str]) -> frozenset[str]:
    return scripts | _JAPANESE if scripts & {"HIRAGANA", "KATAKANA"} else scripts


def _named_script(script: str) -> frozenset[str]:
    if not isinstance(script, str):
        raise InputError(f"script={short(script)} must be the name of a script, such as 'Cyrillic'")
    name = script.strip().upper()
    if name == "JAPANESE":
        return _JAPANESE
    name = _ALIASES.get(name, name)
    if name not in _known_scripts():
        near = difflib.get_close_matches(name, _known_scripts(), n=1)
        hint = f"; did you mean {near[0].title()!r}?" if near else ", such as 'Cyrillic', 'Arabic' or 'Han'"
        raise InputError(f"script={short(script)} is no script{hint}")
    return frozenset({name})


@functools.cache
def _known_scripts() -> frozenset[str]:
    letters = (chr(code) for code in range(sys.maxunicode + 1))
    return frozenset(_script(letter) for letter in letters if unicodedata.category(letter) in _LETTERS)


def _patterns(reference: Any) -> list[Any]:
    found = reference if isinstance(reference, list | tuple) else [reference]
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"the reference {short(reference)} is no regular expression; give one, or pattern= to the metric"
        )
    return [_compiled(one) for one in found]


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    try:
        return regular.compile(pattern)
    except (regular.error, TypeError) as problem:
        raise ValueError(f"no regular expression: {problem}") from None


def _found(pattern: Any, text: str, whole: bool) -> bool:
    match = pattern.fullmatch if whole else pattern.search
    try:
        return match(text.strip() if whole else text, timeout=SEARCH_SECONDS) is not None
    except TimeoutError:
        raise ValueError(f"the pattern {pattern.pattern!r} searched one text for {SEARCH_SECONDS:g} seconds") from None
