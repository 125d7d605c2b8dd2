"""Finds out what a server is by asking it: its dialect, its model, its slots and its own defaults.

What identifies the model goes into a study's fingerprint; the address does not, unless nothing else says who answers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import openai

from llmsearch_optuna.backends.server.connection import OPENAI_HOST, Address, Connection
from llmsearch_optuna.backends.server.dialect import (
    DIALECT_NAMES,
    DIALECTS,
    OPENAI_ITSELF,
    VLLM_BY_ROW,
    Dialect,
)
from llmsearch_optuna.backends.server.failures import Failure, RequestFailedError, failure_of
from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, MARK
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.types import DialectName

_OWNERS: Mapping[str, DialectName] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "library": "ollama",
}
_FREE_NAMES = ("transformers", "openai", "ollama")
"""Dialects of servers that know models which they do not list."""

_LLAMA_CPP_DEFAULTS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
}
"""The server's field -> our name, for what its page of properties says."""

_OLLAMA_FIXED = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repeat_last_n",
}
_OLLAMA_DEFAULTS = {**_OLLAMA_FIXED, "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty"}
"""A model's own parameter -> our name. OpenAI's interface has fields for the last two only, and sets temperature and
top_p to 1 where a client is silent, whatever the model's file says."""


@dataclass(frozen=True)
class Identity:
    """What a server says of itself.

    Attributes:
        dialect: How it is spoken to.
        model: What it calls its model.
        description: What identifies the model; for a study's fingerprint.
        defaults: What it does where a client is silent, under our names.
        slots: How many requests it works on at once; None where it does not say.
        context: How many tokens a prompt and its answer may have together; None where it does not say.
        version: Of the server's program; empty where it does not say.
    """

    dialect: Dialect
    model: str
    description: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    slots: int | None = None
    context: int | None = None
    version: str = ""


async def identify(
    connection: Connection, address: Address, *, model: str | None, dialect: DialectName | None
) -> Identity:
    """Ask a server what it is.

    Args:
        connection: To it.
        address: Where it is.
        model: What the user calls the model; None for the only one that it lists.
        dialect: What the user says it is; None to find out.

    Raises:
        InputError: The model is not there, or there are several and none was named.
        RequestFailedError: The server does not answer.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise InputError(f"dialect={dialect!r} is unknown; give one of {', '.join(DIALECT_NAMES)}")
    listed = await _models(connection, must_answer=model is None)
    pages = dict(zip(("/props", "/version", "/api/version", "/openapi.json"), await _pages(connection), strict=True))
    spoken = DIALECTS[dialect or _dialect_of(address, listed, pages)]
    entry = _entry(listed, model, spoken, address)
    name = str(entry["id"])
    if spoken.name == "llama.cpp":
        return _llama_cpp(spoken, name, entry, pages["/props"])
    if spoken.name == "vllm" and await _picks_by_row(connection, name):
        spoken = VLLM_BY_ROW
    if spoken.name == "openai" and address.host == OPENAI_HOST:
        spoken = OPENAI_ITSELF
    if spoken.name == "ollama":
        spoken = _with_model_file(spoken, await _ollama_parameters(connection, name))
    version = pages["/version" if spoken.name == "vllm" else "/api/version"].get("version", "")
    return Identity(
        dialect=spoken,
        model=name,
        description={
            "dialect": spoken.name,
            "model": base_name(name),
            **({"root": base_name(str(entry["root"]))} if entry.get("root") else {}),
            **({"sampler": "row-keyed"} if spoken.picks_by_row else {}),
            **({"host": address.host} if spoken.name == "openai" else {}),
        },
        defaults=spoken.defaults,
        context=_count(entry.get("max_model_len")),
        version=str(version),
    )


async def _models(connection: Connection, *, must_answer: bool) -> list[Mapping[str, Any]]:
    try:
        answer = await connection.get("/models")
    except Exception as error:
        failure = failure_of(error)
        has_no_list = failure.kind == "never" or (failure.kind == "stop" and failure.reason.startswith(("404", "405")))
        # Transformers answers 500 where it cannot look through its cache of models.
        is_broken = isinstance(error, openai.APIStatusError) and error.status_code == 500
        if not must_answer and (has_no_list or is_broken):
            return []
        if has_no_list:
            failure = Failure("stop", f"it has no list of models ({failure.reason}); is this the address of its /v1?")
        raise RequestFailedError(failure) from error
    found = answer.get("data") if isinstance(answer, Mapping) else None
    return [entry for entry in found or () if isinstance(entry, Mapping) and entry.get("id")]


async def _picks_by_row(connection: Connection, model: str) -> bool:
    """Whether our logits processor is loaded: it refuses what it cannot read, and nothing else looks at it."""
    asked = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0.0, "vllm_xargs": {ARGUMENT: "?"}}
    try:
        await connection.post("/completions", asked)
    except Exception as error:
        failure = failure_of(error)
        if MARK not in failure.reason and failure.kind == "not now":
            raise RequestFailedError(failure) from error  # what it is would be another thing in the next session
        return MARK in failure.reason
    return False


async def _ollama_parameters(connection: Connection, model: str) -> dict[str, Any]:
    """What the model's file sets, of what can be told; empty where the server does not say."""
    try:
        answer = await connection.post_at_root("/api/show", {"model": model})
    except Exception as error:
        failure = failure_of(error)
        if failure.kind == "not now":
            raise RequestFailedError(failure) from error  # the baseline would be another in the next session
        return {}
    said = answer.get("parameters") if isinstance(answer, Mapping) else None
    pairs = [line.split(maxsplit=1) for line in str(said or "").splitlines()]
    return {pair[0]: number for pair in pairs if len(pair) == 2 and (number := _number(pair[1])) is not None}


def _with_model_file(dialect: Dialect, told: Mapping[str, Any]) -> Dialect:
    """Ollama's dialect for a model whose file sets parameters, most of which no request can change."""
    fixed = {ours: told[theirs] for theirs, ours in _OLLAMA_FIXED.items() if theirs in told}
    if fixed.get("repetition_penalty", 1.0) == 1.0:
        fixed.pop("repeat_last_n", None)
    else:
        fixed.setdefault("repeat_last_n", 64)
    defaults = {ours: told[theirs] for theirs, ours in _OLLAMA_DEFAULTS.items() if theirs in told} | fixed
    return replace(
        dialect,
        unchangeable={**dialect.unchangeable, **fixed},
        defaults={**dialect.defaults, **defaults},
    )


async def _pages(connection: Connection) -> Sequence[Mapping[str, Any]]:
    return await asyncio.gather(
        *(_page(connection, path) for path in ("/props", "/version", "/api/version", "/openapi.json"))
    )


async def _page(connection: Connection, path: str) -> Mapping[str, Any]:
    """One of the pages that only some servers have; empty where this one has it not."""
    try:
        answer = await connection.get_at_root(path)
    except Exception:
        return {}
    return answer if isinstance(answer, Mapping) else {}


def _dialect_of(
    address: Address, listed: Sequence[Mapping[str, Any]], pages: Mapping[str, Mapping[str, Any]]
) -> DialectName:
    if address.host == OPENAI_HOST:
        return "openai"
    owners = {str(entry.get("owned_by", "")) for entry in listed}
    if len(owners) == 1 and (named := _OWNERS.get(*owners)) is not None:
        return named
    if "default_generation_settings" in pages["/props"]:
        return "llama.cpp"
    if "version" in pages["/api/version"]:
        return "ollama"
    if _is_transformers(pages["/openapi.json"]):
        return "transformers"
    return "openai"


def _is_transformers(api: Mapping[str, Any]) -> bool:
    paths = api.get("paths")
    return isinstance(paths, Mapping) and "/load_model" in paths and "/v1/chat/completions" in paths


def _entry(
    listed: Sequence[Mapping[str, Any]], model: str | None, dialect: Dialect, address: Address
) -> Mapping[str, Any]:
    names = [str(entry["id"]) for entry in listed]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    if model is None:
        if len(names) != 1:
            raise InputError(f"{address.url} lists {len(names)} models; say which with served_model= ({shown})")
        return listed[0]
    for entry in listed:
        if model in (entry["id"], *(entry.get("aliases") or ())) or f"{model}:latest" == entry["id"]:
            return entry
    if dialect.name not in _FREE_NAMES and names:
        raise InputError(f"{address.url} has no model {model!r}; it lists {shown}")
    return {"id": model}


def _llama_cpp(dialect: Dialect, name: str, entry: Mapping[str, Any], props: Mapping[str, Any]) -> Identity:
    meta = entry.get("meta") if isinstance(entry.get("meta"), Mapping) else {}
    assert isinstance(meta, Mapping)
    settings = props.get("default_generation_settings")
    settings = settings if isinstance(settings, Mapping) else {}
    told = settings.get("params")
    told = told if isinstance(told, Mapping) else {}
    template = props.get("chat_template")
    path = str(props.get("model_path") or name)
    return Identity(
        dialect=dialect,
        model=name,
        description={
            "dialect": dialect.name,
            "model": base_name(path),
            **{key: meta[key] for key in ("n_params", "size", "ftype") if key in meta},
            **({"chat_template": _digest(template)} if isinstance(template, str) else {}),
        },
        defaults={**dialect.defaults, **_llama_cpp_defaults(told)},
        slots=_count(props.get("total_slots")),
        context=_count(settings.get("n_ctx")),
        version=str(props.get("build_info") or ""),
    )


def _llama_cpp_defaults(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the server's properties say, under our names; 32-bit floats as people write them."""
    found = {ours: told[theirs] for theirs, ours in _LLAMA_CPP_DEFAULTS.items() if theirs in told}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}


def base_name(model: str) -> str:
    """Return a model's name without the folder that it lies in on the server's machine."""
    if PurePosixPath(model).is_absolute():
        return PurePosixPath(model).name
    return PureWindowsPath(model).name if PureWindowsPath(model).is_absolute() else model


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and "." not in text else number


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
