"""Whatever the user gives as a model, made into a backend that serves requests.

A server's address is asked, a backend is taken as it is, a user's own engine gets the members it lacks, anything with a
`generate(prompts, params)` gets a queue in front, and a Hugging Face model (or its name) is loaded and put into our
engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from llmsearch_optuna.backends.custom import CustomBackend, is_request_handler, is_text_generator
from llmsearch_optuna.backends.function import FunctionBackend
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.backends.server import connect, is_address
from llmsearch_optuna.backends.vllm import is_vllm, open_vllm
from llmsearch_optuna.declaration import part
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, unknown_span
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from llmsearch_optuna.options import EngineOptions, LoadOptions, ModelOptions, ServerOptions

_STOPS = frozenset({"stop", "stop_strings"})
"""Two names of one parameter."""


@dataclass(frozen=True)
class ResolvedEngine:
    """A backend that is ready to decode, and what is known of its model.

    Attributes:
        backend: Takes requests.
        model: The model behind it.
    """

    backend: EngineBackend
    model: ModelDescription

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or the user's; None where there is none."""
        return self.model.tokenizer

    @cached_property
    def prompt_tokens(self) -> PromptTokens | None:
        """What counts the tokens of prompts: what the backend tokenizes with, where it is the same tokenizer."""
        if self.model.prompt_tokens is not None or self.tokenizer is None:
            return self.model.prompt_tokens
        return PromptTokens(self.tokenizer)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The model's generation configuration, and the number of samples where it is not 1."""
        return self.model.default_params

    def drawing(self, samples: int | Sequence[int]) -> ResolvedEngine:
        """Return the same with so many samples of a row where a configuration says nothing of them.

        Args:
            samples: How many; of several numbers, which are searched, the least.
        """
        samples = samples if isinstance(samples, int) else min(samples)
        if samples == 1:
            return self
        defaults = {**self.model.default_params, "samples": samples}
        return replace(self, model=replace(self.model, default_params=defaults))

    @property
    def description(self) -> Mapping[str, Any]:
        """What results depend on: weights, dtype, tokenizer. Goes into the fingerprint."""
        return self.model.fingerprint

    @property
    def name(self) -> str:
        """The model's name, for people and for the study's name."""
        return self.model.name

    @property
    def positions(self) -> Positions:
        """How many tokens the model has room for."""
        return self.model.positions

    @property
    def stats(self) -> Mapping[str, Any]:
        """The backend's counters; empty where it keeps none."""
        return _counters(self.backend.stats)

    def refusal(self, params: GenerationParams, reasoning: ReasoningSpan | None) -> str | None:
        """Say what of these parameters cannot be had here; None where all can.

        Args:
            params: One configuration, without what it says of the task.
            reasoning: Between which markers the model thinks.
        """
        problem = self.backend.refusal(params)
        return unknown_span(params, reasoning) if problem is None and self.backend.steers_thoughts else problem

    def check_logprobs(self, metric: Metric) -> None:
        """Raise InputError where a metric needs to know how likely tokens are, and the backend does not say it."""
        if metric.reads_logprobs and not self.backend.gives_logprobs:
            raise InputError(
                f"{metric.name} needs the log-probabilities of tokens, and {self.name} gives none: servers, vLLM and "
                "functions count them in ways of their own. Give a model that is decoded here, or another scorer"
            )

    def tag_stats(self, tag: Hashable) -> Mapping[str, Any]:
        """The backend's counters for one trial; empty where it keeps none."""
        return _counters(self.backend.tag_stats(tag))

    def with_defaults(self, generation: Mapping[str, Any] | None) -> ResolvedEngine:
        """Return the same with generation parameters laid over the model's own, such as a task's stop strings."""
        if not generation:
            return self
        said = {*generation, *(_STOPS if _STOPS & set(generation) else ())}
        kept = {name: value for name, value in self.defaults.items() if name not in said}
        return replace(self, model=replace(self.model, default_params={**kept, **generation}))

    def expect(self, requests: Iterable[Request]) -> None:
        """Tell the backend what it will be asked for in the long run."""
        self.backend.expect(requests)

    def capacity(self) -> int:
        """How many requests the backend can make use of at the moment."""
        return self.backend.capacity


def resolve_engine(model: Any, tokenizer: Any = None, options: ModelOptions | None = None) -> ResolvedEngine:
    """Return the backend that decodes for what the user gives as a model.

    Args:
        model: An engine (`EngineBackend`, or another object with `submit`, `poll` and `cancel`), an object with
            `generate(prompts, params)`, a Hugging Face model, a path or hub id of one, the address of a server, a
            `vllm.LLM`, or ``"vllm:"`` and a path or hub id.
        tokenizer: Its tokenizer; found from the model where it can be.
        options: How the model is loaded or asked, and decodes. None is as if an option were left out.

    Raises:
        InputError: The object is none of these, or an option could not have an effect on it.
    """
    given = options if options is not None else ModelOptions()
    engine, loading, server = (_given(part(kind, given)) for kind in (EngineOptions, LoadOptions, ServerOptions))
    if is_address(model):
        _refuse(engine | loading, "model= is a server, which has loaded its model and decodes by itself")
        return _connect(model, tokenizer, server)
    _refuse(server, "model= is no server's address, such as http://127.0.0.1:8000/v1")
    if is_vllm(model):
        return _open_vllm(model, tokenizer, engine, loading)
    _refuse(_among(loading, ("vllm_args",)), "model= is not vLLM's; for that it begins with vllm:")
    if isinstance(model, EngineBackend) or is_request_handler(model):
        _refuse(engine | loading, "model= is an engine already; give it to the engine, or to what loads its model")
        backend = model if isinstance(model, EngineBackend) else CustomBackend(model)
        return ResolvedEngine(backend, backend.describe(tokenizer))
    if not isinstance(model, str) and is_text_generator(model):
        rows = {"batch_rows": engine.pop("batch_size")} if "batch_size" in engine else {}
        _refuse(engine | loading, "model= decodes by its own generate(prompts, params); give it to that")
        backend = FunctionBackend(model, **rows)
        return ResolvedEngine(backend, backend.describe(tokenizer))
    if not isinstance(model, str | Path):
        _refuse(_among(loading, _FROM_FILES), "model= is loaded already")
    return _load(model, tokenizer, engine, loading)


def _connect(url: str, tokenizer: Any, server: Mapping[str, Any]) -> ResolvedEngine:
    options = {"model" if name == "served_model" else name: value for name, value in server.items()}
    backend = connect(url, tokenizer=_loaded_tokenizer(tokenizer), **options)
    return ResolvedEngine(backend, backend.describe())


def _loaded_tokenizer(tokenizer: Any) -> Any:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from llmsearch_optuna.models.loader import load_tokenizer

    return load_tokenizer(tokenizer)


def _open_vllm(model: Any, tokenizer: Any, engine: Mapping[str, Any], loading: Mapping[str, Any]) -> ResolvedEngine:
    loads = ("dtype", "revision", "trust_remote_code", "vllm_args", "batch_size") if isinstance(model, str) else ()
    known = ("tokenizer_decode_args", *loads)
    given = {**engine, **loading}
    reason = "vllm_args= says it" if isinstance(model, str) else "give it to the vllm.LLM"
    _refuse({name: value for name, value in given.items() if name not in known}, reason)
    backend = open_vllm(model, **given)
    return ResolvedEngine(backend, backend.describe(_loaded_tokenizer(tokenizer)))


_FROM_FILES = ("dtype", "device_map", "gguf_file")
"""What is said where a model is read from files."""


def _given(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments that say something."""
    return {name: value for name, value in (arguments or {}).items() if not _is_silent(name, value)}


def _among(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in names}


def _is_silent(name: str, value: Any) -> bool:
    says_auto = isinstance(value, str) and value == "auto" and name != "device_map"  # which asks for spreading
    return value is None or value is False or says_auto


def _refuse(arguments: Mapping[str, Any], reason: str) -> None:
    if arguments:
        raise InputError(f"{', '.join(f'{n}={short(v)}' for n, v in arguments.items())} has no effect here: {reason}")


def _load(model: Any, tokenizer: Any, engine: Mapping[str, Any], loading: Mapping[str, Any]) -> ResolvedEngine:
    from llmsearch_optuna.engine.engine import Engine
    from llmsearch_optuna.models.loader import load

    if not isinstance(model, str | PathLike) and not hasattr(model, "config"):
        raise InputError(
            f"model={short(model)} cannot be searched: give a Hugging Face model, a path or hub id, an Engine, an "
            "object with generate(prompts, params), or Engine.from_function(fn) for a function from these to texts"
        )
    loaded = load(model, tokenizer, **loading)
    made = Engine(loaded.model, loaded.tokenizer, **engine)
    description = ModelDescription.of_loaded(
        loaded,
        tokenizer=loaded.tokenizer,
        default_params=made.default_params,
        tokenizer_decode_args=made.tokenizer_decode_args,
        prompt_tokens=made.prompt_tokens,
    )
    return ResolvedEngine(made, description)


def _counters(stats: Any) -> dict[str, Any]:
    if is_dataclass(stats) and not isinstance(stats, type):
        return asdict(stats)
    return dict(stats) if isinstance(stats, Mapping) else {}
