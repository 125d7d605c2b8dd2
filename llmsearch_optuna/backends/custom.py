"""A user's own engine object as a backend: `submit`, `poll` and `cancel`, and whatever else it happens to have."""

from __future__ import annotations

import contextlib
import inspect
import logging
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from llmsearch_optuna.backends.answers import answer_apart, checked_completion
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.errors import DecodingError, InputError, LlmsearchError, describe_error, short
from llmsearch_optuna.transient_errors import unavailable

logger = logging.getLogger("llmsearch_optuna.backends.custom")

MOST_NEEDLESS_RESULTS = 1000
"""So many results that nobody asked for are left out of one answer; an answer may have no end."""

_RequestName = tuple[Hashable, int, int]


def is_request_handler(model: Any) -> bool:
    """Whether an object has the three methods that every backend has."""
    return all(callable(getattr(model, method, None)) for method in ("submit", "poll", "cancel"))


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


def _name(request: Request) -> _RequestName:
    return request.tag, request.row, request.replicate


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in words what a user's object raises, and whether it is away or cannot decode."""
    try:
        yield
    except (LlmsearchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise unavailable(error) or DecodingError(f"{what} of the engine raised {describe_error(error)}") from error


class CustomBackend(EngineBackend):
    """Gives a user's object the members of `EngineBackend` that it lacks.

    Args:
        custom: The object. Of the optional members it may have any; it may also have ``name``, ``tokenizer``,
            ``default_params`` and ``description`` (a mapping) instead of ``describe``, or hold a Hugging Face model as
            ``model``.
    """

    def __init__(self, custom: Any) -> None:
        self.custom = custom
        self._open: dict[_RequestName, Request] = {}
        self._has_warned = False

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        asked = list(requests)
        self._open.update({_name(request): request for request in asked})
        with _told("submit()"):
            self.custom.submit(asked)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued.

        What nobody asked for, or was answered before, is left out.

        Raises:
            EngineUnavailableError: The object does not answer for now.
            DecodingError: It failed in another way, or returned what is no list of finished requests.
        """
        if not self._open:
            return []
        most = len(self._open) + MOST_NEEDLESS_RESULTS
        finished: list[Finished] = []
        with _told("poll()"):
            for number, item in enumerate(self.custom.poll()):
                if number >= most:
                    raise DecodingError(
                        f"poll() of the engine returned more than {most} results, and {len(self._open)} are asked for"
                    )
                finished += self._taken(item)
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued."""
        self._open = {name: request for name, request in self._open.items() if request.tag != tag}
        with _told("cancel()"):
            self.custom.cancel(tag)

    def _taken(self, item: Any) -> list[Finished]:
        """What an item answers: nothing where nobody asks for it any more."""
        if not isinstance(item, Finished) or not isinstance(item.request, Request):
            raise DecodingError(f"poll() of the engine returned {short(item)} where finished requests were expected")
        asked = self._open.pop(_name(item.request), None)
        if asked is None:
            self._warn_once(item.request)
            return []
        if item.completion is None:
            return [Finished(asked, None, item.error)]
        try:
            return [Finished(asked, answer_apart(checked_completion(item.completion), asked))]
        except DecodingError as error:
            return [Finished(asked, None, error)]

    def _warn_once(self, request: Request) -> None:
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        logger.log(
            level,
            "the engine returned row %s of %s, which was answered before, cancelled or never asked for; such results "
            "are left out, and further ones are logged at DEBUG",
            request.row,
            request.tag,
        )

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the object by what it says of itself, or by the Hugging Face model that it holds."""
        shown = tokenizer if tokenizer is not None else self._member("tokenizer")
        defaults = self._default_params()
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

    def _default_params(self) -> dict[str, Any]:
        given = self._member("default_params")
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"the engine's default_params are {short(given)}; they must be a dict of parameters")
        return dict(given or {})

    def _own(self) -> Mapping[str, Any]:
        """What the object says that its results depend on, else its class."""
        given = self._member("description")
        return dict(given) if isinstance(given, Mapping) else {"engine": type(self.custom).__qualname__}

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """What of these parameters the object says that it cannot apply."""
        refusal = self._member("refusal")
        if not callable(refusal):
            return super().refusal(params)
        with _told("refusal()"):
            reason = refusal(params)
        return None if reason is None else str(reason)

    @property
    def steers_thoughts(self) -> bool:
        """Whether the object says that it ends thoughts itself."""
        return bool(self._member("steers_thoughts", super().steers_thoughts))

    @property
    def gives_logprobs(self) -> bool:
        """Whether the object says how likely the tokens of its completions are."""
        return bool(self._member("gives_logprobs", super().gives_logprobs))

    @property
    def capacity(self) -> int:
        """How many requests it can make use of at the moment."""
        return self._count("capacity", super().capacity, least=1)

    def expect(self, requests: Iterable[Request]) -> None:
        """Tell the object what will be asked for, where it wants to know."""
        expect = self._member("expect")
        if callable(expect):
            with _told("expect()"):
                expect(requests)

    @property
    def stats(self) -> Any:
        """Its counters."""
        return self._member("stats", super().stats)

    def tag_stats(self, tag: Hashable) -> Any:
        """Its counters of one tag."""
        stats = self._member("tag_stats")
        if not callable(stats):
            return super().tag_stats(tag)
        with _told("tag_stats()"):
            return stats(tag)

    @property
    def cache_budget(self) -> int:
        """Bytes that it may keep for later requests."""
        return self._count("cache_budget", super().cache_budget, least=0)

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
        start_from = self._member("start_from")
        if callable(start_from):
            with _told("start_from()"):
                start_from(batch_sizes)

    def _member(self, name: str, default: Any = None) -> Any:
        with _told(name):
            return getattr(self.custom, name, default)

    def _count(self, name: str, default: int, *, least: int) -> int:
        """A member that is a whole number."""
        given = self._member(name, default)
        try:
            found = operator.index(given)
        except TypeError:
            found = least - 1
        if found < least:
            raise InputError(f"the engine's {name} is {short(given)}; it must be a whole number from {least} on")
        return found
