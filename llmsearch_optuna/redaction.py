"""Texts without the secrets in them: passwords in addresses, and keys in settings.

What is printed or stored goes through here wherever a user's address or study file may be part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SECRET_NAME = (
    r"(?:ssl)?password|passwd|pwd|secret|client[_-]?secret|api[_-]?key|(?:access|auth|hf)[_-]?token|token|sslkey"
)
# The password ends at the last @ before white space or a quote: it may hold @, : and / itself.
# One slash is what a path makes of two.
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]*:/+[^\s:/@'\"]*:)[^\s'\"]+(?=@)", re.IGNORECASE)
_IS_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_QUERY = re.compile(rf"([?&;](?:{_SECRET_NAME})=)[^\s&;#'\"]+", re.IGNORECASE)
_IS_SECRET_NAME = re.compile(_SECRET_NAME, re.IGNORECASE)
_TOML_TEXT = r"(\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*')"
_TOML_STORAGE = re.compile(rf"^([ \t#]*(?:[\w-]+\.)*storage[ \t]*=[ \t]*){_TOML_TEXT}", re.MULTILINE)
_TOML_SECRET = re.compile(rf"((?<![\w-])(?:{_SECRET_NAME})[ \t]*=[ \t]*){_TOML_TEXT}", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with the passwords of all addresses in it as ``***``.

    >>> redacted("no postgresql://ann:pa@ss@db/studies?sslmode=off&password=x here")
    'no postgresql://ann:***@db/studies?sslmode=off&password=*** here'
    """
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(rf"\g<1>{HIDDEN}", text))


def redacted_address(address: str) -> str:
    """An address without its password, which may hold white space and quotes where nothing else stands beside it.

    >>> redacted_address("postgresql://ann:p'a ss@db/studies?password=x y&sslmode=off")
    'postgresql://ann:***@db/studies?password=***&sslmode=off'
    """
    hidden = re.sub(r"(:/+[^:/@]*:).*@", rf"\g<1>{HIDDEN}@", address, flags=re.DOTALL)
    hidden = re.sub(rf"([?&;](?:{_SECRET_NAME})=)[^&;#]*", rf"\g<1>{HIDDEN}", hidden, flags=re.IGNORECASE)
    return redacted(hidden)


def redacted_values(value: Any) -> Any:
    """JSON-able values without passwords and keys: texts as `redacted` gives them, ``***`` under a secret's name.

    >>> redacted_values({"api_key": "k", "storage": "postgresql://ann:x@db/s", "seed": 1})
    {'api_key': '***', 'storage': 'postgresql://ann:***@db/s', 'seed': 1}
    """
    if isinstance(value, str):
        return redacted_address(value) if _IS_ADDRESS.match(value) else redacted(value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if isinstance(inner, str) and _IS_SECRET_NAME.fullmatch(str(name)) else redacted_values(inner)
            for name, inner in value.items()
        }
    return [redacted_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def redacted_study_file(text: str) -> str:
    """A study file's text without passwords and keys; everything else stays as it is.

    >>> redacted_study_file('storage = "postgresql://ann:x y@db/s"')
    'storage = "postgresql://ann:***@db/s"'
    """

    def address(found: re.Match[str]) -> str:
        quoted = found[2]
        value = quoted[1:-1]
        hidden = redacted_address(value)
        return found[1] + (quoted if hidden == value else json.dumps(hidden, ensure_ascii=False))

    return redacted(_TOML_SECRET.sub(rf'\g<1>"{HIDDEN}"', _TOML_STORAGE.sub(address, text)))
