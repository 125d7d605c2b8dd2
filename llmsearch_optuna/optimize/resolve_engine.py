"""Whatever the user calls a model, made into something that serves requests.

An engine is taken as it is, anything with a `generate(prompts, params)` gets a queue in front, and a Hugging Face
model (or its name) is loaded and put into our engine. Everything beyond serving is optional here, so that synthetic
engines stay small.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from llmsearch_optuna.backends.function import FunctionEngine, OneMethodServer
from llmsearch_optuna.engine.request import Request, RequestServer
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.fingerprint.functions import describe_callable
from llmsearch_optuna.metrics.checks import short
from llmsearch_optuna.models.tokenization import Positions

CAPACITY = 64
"""Requests to hand to an engine that does not say how many it can make use of."""


@dataclass(frozen=True)
class Served:
    """A model that is ready to decode.

    Attributes:
        server: Takes requests.
        tokenizer: None where the engine has none to show.
        defaults: The model's generation configuration.
        description: What results depend on: weights, dtype, tokenizer. Goes into the fingerprint.
        name: For people and for the study's name.
        engine: The object that may have statistics.
        positions: How many tokens the model has room for, where that is known.
    """

    server: RequestServer
    tokenizer: Any
    defaults: Mapping[str, Any]
    description: Mapping[str, Any]
    name: str
    engine: Any
    positions: Positions = field(default_factory=Positions)

    def tag_stats(self, tag: Hashable) -> Mapping[str, Any]:
        """The engine's counters for one trial, where it keeps any."""
        stats = getattr(self.engine, "tag_stats", None)
        return _counters(stats(tag)) if callable(stats) else {}

    def expect(self, requests: Iterable[Request]) -> None:
        """Tell an engine that wants to know it what it will be asked for in the long run."""
        expect = getattr(self.engine, "expect", None)
        if callable(expect):
            expect(requests)

    def capacity(self) -> int:
        """How many requests the server can make use of at the moment."""
        return int(getattr(self.server, "capacity", CAPACITY))

    @property
    def stats(self) -> Mapping[str, Any]:
        """The engine's counters, where it keeps any."""
        return _counters(getattr(self.engine, "stats", None))


def serve(
    model: Any,
    tokenizer: Any = None,
    *,
    engine: Mapping[str, Any] | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Served:
    """Make the model ready to decode.

    Args:
        model: An engine (`submit`, `poll`, `cancel`), an object with `generate(prompts, params)`, a Hugging Face
            model, or a path or hub id of one.
        tokenizer: Its tokenizer; found from the model where it can be.
        engine: Keyword arguments of `Engine`, for a Hugging Face model.
        loading: Keyword arguments of `load`, for a Hugging Face model. None says nothing, here as there.

    Raises:
        InputError: The object is none of these, or an argument could not have an effect on it.
    """
    engine, loading = _given(engine), _given(loading)
    if all(callable(getattr(model, method, None)) for method in ("submit", "poll", "cancel")):
        _refuse(engine | loading, "model= is an engine already; give it to the engine, or to what loads its model")
        return _described(model, model, tokenizer)
    if not isinstance(model, str) and _has_one_method(model):
        rows = {"batch_rows": engine.pop("batch_size")} if "batch_size" in engine else {}
        _refuse(engine | loading, "model= decodes by its own generate(prompts, params); give it to that")
        return _described(OneMethodServer(model, **rows), model, tokenizer)
    if not isinstance(model, str | Path):
        _refuse({n: v for n, v in loading.items() if n in _FROM_FILES}, "model= is loaded already")
    return _load(model, tokenizer, engine, loading)


_FROM_FILES = ("dtype", "device_map", "gguf_file")
"""What is said where a model is read from files."""


def _given(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments that say something."""
    return {name: value for name, value in (arguments or {}).items() if not _is_silent(name, value)}


def _is_silent(name: str, value: Any) -> bool:
    says_auto = isinstance(value, str) and value == "auto" and name != "device_map"  # which asks for spreading
    return value is None or value is False or says_auto


def _refuse(arguments: Mapping[str, Any], reason: str) -> None:
    if arguments:
        raise InputError(f"{', '.join(f'{n}={v!r}' for n, v in arguments.items())} has no effect here: {reason}")


def _described(server: RequestServer, engine: Any, tokenizer: Any) -> Served:
    if hasattr(getattr(engine, "model", None), "config"):
        from llmsearch_optuna.models.loader import load

        loaded = load(engine.model, tokenizer if tokenizer is not None else engine.tokenizer)
        description, name, positions = _with_decoding(loaded.description, engine), loaded.name, loaded.positions
    else:
        description, name, positions = (
            _description(engine),
            str(getattr(engine, "name", type(engine).__name__)),
            Positions(),
        )
    return Served(
        server=server,
        tokenizer=tokenizer if tokenizer is not None else getattr(engine, "tokenizer", None),
        defaults=dict(getattr(engine, "default_params", None) or {}),
        description=description,
        name=name,
        engine=engine,
        positions=positions,
    )


def _with_decoding(description: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """How tokens become text counts as well, where a user has a say in it."""
    args = getattr(engine, "tokenizer_decode_args", None)
    return {**description, "tokenizer_decode_args": dict(args)} if args else dict(description)


def _description(engine: Any) -> dict[str, Any]:
    if isinstance(engine, FunctionEngine):
        return {"function": describe_callable(engine.function)}
    given = getattr(engine, "description", None)
    return dict(given) if isinstance(given, Mapping) else {"engine": type(engine).__qualname__}


def _has_one_method(model: Any) -> bool:
    # A Hugging Face model has a `generate` too, but takes tensors.
    generate: Callable[..., Any] | None = getattr(model, "generate", None)
    if not callable(generate) or hasattr(model, "config"):
        return False
    try:
        names = list(inspect.signature(generate).parameters)
    except (TypeError, ValueError):
        return True
    return len(names) >= 2 or any(name in ("args", "kwargs") for name in names)


def _load(model: Any, tokenizer: Any, engine: Mapping[str, Any], loading: Mapping[str, Any]) -> Served:
    from llmsearch_optuna.engine.engine import Engine
    from llmsearch_optuna.models.loader import load

    if not isinstance(model, str) and not hasattr(model, "__fspath__") and not hasattr(model, "config"):
        raise InputError(
            f"model={short(model)} cannot be searched: give a Hugging Face model, a path or hub id, an Engine, an "
            "object with generate(prompts, params), or Engine.from_function(fn) for a function from these to texts"
        )
    loaded = load(model, tokenizer, **loading)
    made = Engine(loaded.model, loaded.tokenizer, **engine)
    return Served(
        server=made,
        tokenizer=loaded.tokenizer,
        defaults=dict(made.default_params),
        description=_with_decoding(loaded.description, made),
        name=loaded.name,
        engine=made,
        positions=loaded.positions,
    )


def _counters(stats: Any) -> dict[str, Any]:
    if is_dataclass(stats) and not isinstance(stats, type):
        return asdict(stats)
    return dict(stats) if isinstance(stats, Mapping) else {}
