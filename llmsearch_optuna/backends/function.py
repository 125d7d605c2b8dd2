"""A function from prompts and parameters to texts, or an object with such a method, as a backend.

First come, first served; rows of one batch share their parameters, so batches never mix trials. A function knows no
replicates: a fresh one gets another `generation_seed`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llmsearch_optuna.backends.answers import answer_apart, checked_completion
from llmsearch_optuna.backends.custom import CustomBackend
from llmsearch_optuna.backends.protocol import TextGenerator
from llmsearch_optuna.engine.request import Completion, Finished, Request, checked_prompts, log_finished
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, InputError, describe_error, short
from llmsearch_optuna.fingerprint.functions import describe_callable
from llmsearch_optuna.transient_errors import ask_patiently, unavailable

logger = logging.getLogger("llmsearch_optuna.backends.function")

BATCH_ROWS = 8


@dataclass(frozen=True)
class FunctionEngine:
    """A function as an object with `generate`; `Engine.from_function` makes it.

    Attributes:
        function: ``function(prompts, params)`` returns one text a prompt, in their order. ``params`` is a dict of
            generation parameters under Hugging Face's names, defaults included and without what has no effect.
        tokenizer: For chat templates and for counting tokens, where prompts need either.
        default_params: What holds where a configuration is silent; the baseline.
    """

    function: Callable[[list[str], dict[str, Any]], Iterable[str]]
    tokenizer: Any = None
    default_params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"{short(self.function)} is no function(prompts, params) that returns texts")
        if not isinstance(self.default_params, Mapping):
            raise InputError(f"default_params={short(self.default_params)} must be a dict of generation parameters")

    @property
    def name(self) -> str:
        """What the function is called."""
        return str(getattr(self.function, "__name__", type(self.function).__name__)).strip("<>")

    @property
    def description(self) -> Mapping[str, Any]:
        """What its texts depend on: the function's source."""
        return {"function": describe_callable(self.function)}

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        """Ask the function.

        Raises:
            DecodingError: It returned something else than texts.
        """
        if not isinstance(params, Mapping):
            raise InputError(f"params={short(params)} must be a dict of generation parameters")
        asked = checked_prompts(prompts)
        texts = self.function(list(asked), dict(params))
        if not is_ordered(texts):
            raise DecodingError(f"{self.name} must return a list with one text a prompt, but returned {short(texts)}")
        texts = list(islice(texts, len(asked) + 1))  # a generator may have no end
        strange = next((text for text in texts if not isinstance(text, str)), None)
        if strange is not None:
            raise DecodingError(f"{self.name} must return texts, but one of them is {short(strange)}")
        return [Completion(text) for text in texts]


class FunctionBackend(CustomBackend):
    """Decodes by an object's method ``generate(prompts, params)``.

    Args:
        generator: Decodes prompts, all under one set of parameters. It may have the optional members of `EngineBackend`
            (see `CustomBackend`), but for its capacity, which is twice the batch.
        batch_rows: How many prompts it gets at most in one call.
    """

    def __init__(self, generator: TextGenerator, *, batch_rows: int = BATCH_ROWS) -> None:
        super().__init__(generator)
        self._batch_rows = batch_rows
        self._queue: deque[Request] = deque()

    @property
    def capacity(self) -> int:
        """How many requests it can make use of at the moment."""
        return 2 * self._batch_rows

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        self._queue.extend(requests)

    def poll(self) -> list[Finished]:
        """Decode the next rows of the oldest request's trial and replicate."""
        if not self._queue:
            return []
        first = self._queue[0]
        batch: list[Request] = []
        kept: deque[Request] = deque()
        for request in self._queue:
            alike = (request.tag, request.replicate, request.params) == (first.tag, first.replicate, first.params)
            if alike and len(batch) < self._batch_rows:
                batch.append(request)
            else:
                kept.append(request)
        self._queue = kept
        finished = self._decode(batch)
        log_finished(logger, finished)
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag."""
        self._queue = deque(request for request in self._queue if request.tag != tag)

    def _decode(self, batch: Sequence[Request]) -> list[Finished]:
        """Decode a batch; one that fails is decoded again in halves, so that a bad row fails alone."""
        try:
            given = ask_patiently(lambda: self._ask(batch), unavailable)
        except EngineUnavailableError:
            raise
        except _UnusableAnswerError as error:  # whose text is whose is not known, so no half could be trusted
            return [Finished(request, None, error) for request in batch]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if len(batch) == 1:
                return [Finished(batch[0], None, _as_decoding_error(error))]
            middle = len(batch) // 2
            return self._decode(batch[:middle]) + self._decode(batch[middle:])
        return [_finished(request, answer) for request, answer in zip(batch, given, strict=True)]

    def _ask(self, batch: Sequence[Request]) -> list[Any]:
        answers = self.custom.generate([r.prompt for r in batch], params_of_replicate(batch[0]))
        if not is_ordered(answers):
            raise _UnusableAnswerError(
                f"the engine must return a list with one completion a prompt, not {short(answers)}"
            )
        given = list(islice(answers, len(batch) + 1))  # a generator may have no end
        if len(given) > len(batch):
            raise _UnusableAnswerError(f"the engine returned more completions than the {len(batch)} prompts it got")
        if len(given) < len(batch):
            raise _UnusableAnswerError(f"the engine returned {len(given)} completions for {len(batch)} prompts")
        return given


def is_ordered(answers: Any) -> bool:
    """Whether one of several answers is that to the first prompt: a set or a dict has no such order."""
    return isinstance(answers, Iterable) and not isinstance(answers, str | bytes | Mapping | AbstractSet)


class _UnusableAnswerError(DecodingError):
    """The answer to a batch cannot be told apart into its rows."""


def params_of_replicate(request: Request) -> GenerationParams:
    """The request's parameters; a fresh replicate of something sampled has a seed of its own."""
    params = request.params
    if request.replicate == 0 or params.get("do_sample") is not True:
        return params
    mixed = hashlib.sha256(f"{params.generation_seed} {request.replicate}".encode()).digest()
    return GenerationParams.of({**params.canonical, "generation_seed": int.from_bytes(mixed[:4], "big") >> 1})


def _finished(request: Request, answer: Any) -> Finished:
    try:
        return Finished(request, answer_apart(checked_completion(answer), request))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an answer may be any object, and its attributes may raise
        return Finished(request, None, _as_decoding_error(error))


def _as_decoding_error(error: BaseException) -> DecodingError:
    return error if isinstance(error, DecodingError) else DecodingError(f"the engine raised {describe_error(error)}")
