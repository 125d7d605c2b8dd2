"""Texts of models and datasets as safe HTML, and the words in which two of them differ.

Nothing that a model wrote may act on the page: markup is escaped, control and direction characters are shown.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from html import escape

# Characters that turn the direction of the text around them; harmless only when they are seen.
_DIRECTION = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u2028\u2029]")
_WORDS = re.compile(r"\s+|[^\s]+")


def safe(text: str) -> str:
    """The text as HTML: escaped, control characters as escapes, line breaks and tabs kept.

    >>> safe('<b>\\x1b[2J"')
    '&lt;b&gt;\\\\x1b[2J&quot;'
    """
    return escape(_DIRECTION.sub(_named, _CONTROL.sub(_named, text)), quote=True)


def clip_tail(text: str, limit: int) -> str:
    """The last `limit` characters: of a prompt the end matters most."""
    return text if len(text) <= limit else "… " + text[-limit:]


def marked_words(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML; words that only `before` has stand in ``<del>``, words that only `after` has in ``<ins>``.

    >>> marked_words("a red fox", "a blue fox")
    ('a <del>red</del> fox', 'a <ins>blue</ins> fox')
    """
    left, right = _WORDS.findall(before), _WORDS.findall(after)
    left_html, right_html = [], []
    # Without autojunk: it would drop frequent words of long texts, and completions are short.
    for tag, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        left_html.append(_marked(left[i:j], "del" if tag != "equal" else ""))
        right_html.append(_marked(right[k:m], "ins" if tag != "equal" else ""))
    return "".join(left_html), "".join(right_html)


def _marked(words: list[str], mark: str) -> str:
    text = "".join(words)
    if not mark or not text.strip():
        return safe(text)
    head, tail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{safe(head)}<{mark}>{safe(text.strip())}</{mark}>{safe(tail)}"


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"[U+{code:04X}]"
