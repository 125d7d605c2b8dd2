"""A user's own engine object as a backend: `submit`, `poll` and `cancel`, and whatever else it happens to have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from llmsearch_optuna.backends.answers import answer_apart, checked_completion, unavailable
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.errors import FOREIGN_ERRORS, DecodingError, LlmsearchError, describe_error, short


def is_request_handler(model: Any) -> bool:
    """Whether an object has the three methods that every backend has."""
    return all(callable(getattr(model, method, None)) for method in ("submit", "poll", "cancel"))


def _checked(item: Any) -> Finished:
    if not isinstance(item, Finished):
        raise DecodingError(f"poll() of the engine returned {short(item)} where finished requests were expected")
    if item.completion is None:
        return item
    try:
        return Finished(item.request, answer_apart(checked_completion(item.completion), item.request))
    except DecodingError as error:
        return Finished(item.request, None, error)


def is_text_generator(model: Any) -> bool:
    """Whether an object has a ``generate(prompts, params)``."""
    # A Hugging Face model has a `generate` too, but takes tensors.
    generate: Callable[..., Any] | None = getattr(model, "generate", None)
    if not callable(generate) or hasattr(model, "config"):
        return False
    try:
        names = list(inspect.signature(generate).parameters)
    except (TypeError, ValueError):
        return True
    return len(names) >= 2 or any(name in ("args", "kwargs") for name in names)


class CustomBackend(EngineBackend):
    """Gives a user's object the members of `EngineBackend` that it lacks.

    Args:
        custom: The object. Of the optional members it may have any; it may also have ``name``, ``tokenizer``,
            ``default_params`` and ``description`` (a mapping) instead of ``describe``, or hold a Hugging Face model as
            ``model``.
    """

    def __init__(self, custom: Any) -> None:
        self.custom = custom

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        self.custom.submit(requests)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued.

        Raises:
            EngineUnavailableError: The object does not answer for now.
            DecodingError: It failed in another way, or returned what is no list of finished requests.
        """
        try:
            finished = list(self.custom.poll())
        except LlmsearchError:
            raise
        except FOREIGN_ERRORS as error:
            raise unavailable(error) or DecodingError(f"the engine raised {describe_error(error)}") from error
        return [_checked(item) for item in finished]

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued."""
        self.custom.cancel(tag)

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the object by what it says of itself, or by the Hugging Face model that it holds."""
        shown = tokenizer if tokenizer is not None else self._member("tokenizer")
        defaults = dict(self._member("default_params") or {})
        model = self._member("model")
        if hasattr(model, "config"):
            from llmsearch_optuna.models.loader import load

            return ModelDescription.of_loaded(
                load(model, shown),
                tokenizer=shown,
                default_params=defaults,
                tokenizer_decode_args=self._member("tokenizer_decode_args"),
            )
        return ModelDescription(str(self._member("name", type(self.custom).__name__)), self._own(), shown, defaults)

    def _own(self) -> Mapping[str, Any]:
        """What the object says that its results depend on, else its class."""
        given = self._member("description")
        return dict(given) if isinstance(given, Mapping) else {"engine": type(self.custom).__qualname__}

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """What of these parameters the object says that it cannot apply."""
        refusal = self._member("refusal")
        return refusal(params) if callable(refusal) else super().refusal(params)

    @property
    def capacity(self) -> int:
        """How many requests it can make use of at the moment."""
        return int(self._member("capacity", super().capacity))

    def expect(self, requests: Iterable[Request]) -> None:
        """Tell the object what will be asked for, where it wants to know."""
        expect = self._member("expect")
        if callable(expect):
            expect(requests)

    @property
    def stats(self) -> Any:
        """Its counters."""
        return self._member("stats", super().stats)

    def tag_stats(self, tag: Hashable) -> Any:
        """Its counters of one tag."""
        stats = self._member("tag_stats")
        return stats(tag) if callable(stats) else super().tag_stats(tag)

    @property
    def cache_budget(self) -> int:
        """Bytes that it may keep for later requests."""
        return int(self._member("cache_budget", super().cache_budget))

    @property
    def device_name(self) -> str:
        """Its device."""
        return str(self._member("device_name", super().device_name))

    @property
    def batch_sizes(self) -> Mapping[tuple[int, int], int] | None:
        """Batch sizes that it has learned; None where it learns none."""
        found: Mapping[tuple[int, int], int] | None = self._member("batch_sizes", super().batch_sizes)
        return found

    def start_from(self, batch_sizes: Mapping[tuple[int, int], int]) -> None:
        """Begin with batch sizes that were learned before."""
        self.custom.start_from(batch_sizes)

    def _member(self, name: str, default: Any = None) -> Any:
        return getattr(self.custom, name, default)
