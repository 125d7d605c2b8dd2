"""Whatever the user calls a model, made into something that serves requests.

An engine is taken as it is, anything with a `generate(prompts, params)` gets a queue in front, and a Hugging Face
model (or its name) is loaded and put into our engine. Everything beyond serving is optional here, so that synthetic
engines stay small.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

from llmsearch_optuna.decoding.one_method import OneMethodServer
from llmsearch_optuna.decoding.requests import RequestServer
from llmsearch_optuna.errors import InputError

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
        max_context: How many positions prompt and completion share, where there is such a limit.
    """

    server: RequestServer
    tokenizer: Any
    defaults: Mapping[str, Any]
    description: Mapping[str, Any]
    name: str
    engine: Any
    max_context: int | None = None

    def tag_stats(self, tag: Hashable) -> Mapping[str, Any]:
        """The engine's counters for one trial, where it keeps any."""
        stats = getattr(self.engine, "tag_stats", None)
        return _counters(stats(tag)) if callable(stats) else {}

    def capacity(self) -> int:
        """How many requests the server can make use of at the moment."""
        limit = getattr(self.engine, "batch_limit", None)
        rows = getattr(limit, "rows", None)
        return int(rows) if rows else int(getattr(self.server, "capacity", CAPACITY))

    @property
    def stats(self) -> Mapping[str, Any]:
        """The engine's counters, where it keeps any."""
        return _counters(getattr(self.engine, "stats", None))


def serve(
    model: Any,
    tokenizer: Any = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    cache_budget: int | Literal["auto"] = "auto",
    device: str | None = None,
    revision: str | None = None,
    dtype: Any = None,
) -> Served:
    """Make the model ready to decode.

    Args:
        model: An engine (`submit`, `poll`, `cancel`), an object with `generate(prompts, params)`, a Hugging Face
            model, or a path or hub id of one.
        tokenizer: Its tokenizer; found from the model where it can be.
        batch_size: Most rows in one pass, for a Hugging Face model.
        cache_budget: Bytes of cache, for a Hugging Face model.
        device: Where to load a model to.
        revision: Which revision of it to load.
        dtype: In which dtype to load it.

    Raises:
        InputError: The object is none of these.
    """
    if all(callable(getattr(model, method, None)) for method in ("submit", "poll", "cancel")):
        return _described(model, model, tokenizer)
    if not isinstance(model, str) and _has_one_method(model):
        return _described(OneMethodServer(model), model, tokenizer)
    return _load(
        model,
        tokenizer,
        {"batch_size": batch_size, "cache_budget": cache_budget},
        {"device": device, "revision": revision, "dtype": dtype},
    )


def _described(server: RequestServer, engine: Any, tokenizer: Any) -> Served:
    if hasattr(getattr(engine, "model", None), "config"):
        from llmsearch_optuna import models

        loaded = models.load(engine.model, tokenizer if tokenizer is not None else engine.tokenizer)
        description, name, limit = loaded.description, loaded.name, loaded.max_context
    else:
        description, name, limit = _description(engine), str(getattr(engine, "name", type(engine).__name__)), None
    return Served(
        server=server,
        tokenizer=tokenizer if tokenizer is not None else getattr(engine, "tokenizer", None),
        defaults=dict(getattr(engine, "default_params", None) or {}),
        description=description,
        name=name,
        engine=engine,
        max_context=limit,
    )


def _description(engine: Any) -> dict[str, Any]:
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
    from llmsearch_optuna import models
    from llmsearch_optuna.decoding.engine import Engine

    if not isinstance(model, str) and not hasattr(model, "__fspath__") and not hasattr(model, "config"):
        raise InputError(
            f"model={model!r} cannot be searched: give a Hugging Face model, a path or hub id, an Engine, or an object "
            "with generate(prompts, params)"
        )
    loaded = models.load(model, tokenizer, **{k: v for k, v in loading.items() if v is not None})
    made = Engine(loaded.model, loaded.tokenizer, **engine)
    return Served(
        server=made,
        tokenizer=loaded.tokenizer,
        defaults=dict(made.default_params),
        description=loaded.description,
        name=loaded.name,
        engine=made,
        max_context=loaded.max_context,
    )


def _counters(stats: Any) -> dict[str, Any]:
    if is_dataclass(stats) and not isinstance(stats, type):
        return asdict(stats)
    return dict(stats) if isinstance(stats, Mapping) else {}
