"""How a user's function counts in a study's fingerprint: by its name where it has one, else by its source.

A function that is stored with a study must be recognised when the study is opened again in another process.
Addresses, file names and line numbers must not enter. Nothing here calls the function.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any

_PLAIN = (str, int, float, bool, bytes, type(None))


def describe_callable(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a description of ``function`` that is JSON-able and the same in every process.

    A ``name`` attribute that is a text stands for everything else; set one to say that two versions of a function
    mean the same. Otherwise the source text counts, with the plain values that the function closes over, its
    defaults and, for ``functools.partial``, the bound arguments. Without source (a function typed into a prompt)
    its compiled code counts.
    """
    name = getattr(function, "name", None)
    if isinstance(name, str) and name:
        return {"name": name}
    if isinstance(function, functools.partial):
        bound = [_plain(value) for value in function.args]
        named = {key: _plain(value) for key, value in sorted(function.keywords.items())}
        return {"partial": describe_callable(function.func), "args": bound, "keywords": named}
    if inspect.ismethod(function):
        return {"method": describe_callable(function.__func__), "self": _state(function.__self__)}
    if inspect.isfunction(function):
        return _describe_function(function)
    if inspect.isbuiltin(function) or inspect.isclass(function):
        return {"qualified_name": f"{function.__module__}.{function.__qualname__}"}
    return {"source": _source_of(type(function)), "self": _state(function)}


def callable_name(function: Callable[..., Any], otherwise: str) -> str:
    """Return a short name for messages and tables; ``otherwise`` where the function has none (a lambda)."""
    for candidate in (getattr(function, "name", None), getattr(function, "__name__", None)):
        if isinstance(candidate, str) and candidate and candidate != "<lambda>":
            return candidate
    if isinstance(function, functools.partial):
        return callable_name(function.func, otherwise)
    if getattr(function, "__name__", None) == "<lambda>":
        return otherwise
    return type(function).__name__


def _describe_function(function: Any) -> dict[str, Any]:
    description: dict[str, Any] = {"source": _source_of(function)}
    closed_over = {
        name: _plain(cell.cell_contents)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if _is_filled(cell)
    }
    if closed_over:
        description["closure"] = closed_over
    if function.__defaults__:
        description["defaults"] = [_plain(value) for value in function.__defaults__]
    if function.__kwdefaults__:
        description["keyword_defaults"] = {key: _plain(value) for key, value in sorted(function.__kwdefaults__.items())}
    return description


def _source_of(subject: Any) -> str:
    try:
        source = textwrap.dedent(inspect.getsource(subject)).strip()
    except (OSError, TypeError):
        code = getattr(subject, "__code__", None)
        return "code:" + _code_hash(code) if code is not None else f"{subject.__module__}.{subject.__qualname__}"
    if getattr(subject, "__name__", None) == "<lambda>":
        return _lambda_text(source, subject.__code__) or source
    return source


def _lambda_text(source: str, code: CodeType) -> str | None:
    """Return the lambda alone: the rest of its lines is other code, which may change without it."""
    try:
        found = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda)]
    except SyntaxError:
        return None
    same = {text for text in found if _same_code(text, code)}
    return same.pop() if len(same) == 1 else None


def _same_code(text: str, code: CodeType) -> bool:
    compiled = compile(text, "<lambda>", "eval").co_consts[0]
    return isinstance(compiled, CodeType) and _code_hash(compiled) == _code_hash(code)


def _code_hash(code: CodeType) -> str:
    digest = hashlib.sha256(code.co_code)
    for constant in code.co_consts:
        digest.update((_code_hash(constant) if isinstance(constant, CodeType) else repr(constant)).encode())
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value.hex() if isinstance(value, bytes) else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if inspect.isfunction(value):
        return {"source": _source_of(value)}
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _state(instance: Any) -> Any:
    return _plain(instance) if isinstance(instance, _PLAIN) else _plain(getattr(instance, "__dict__", {}))


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that is assigned only after the function was made
        return False
    return True
