"""Lets anything that has `generate(prompts, params)` serve requests, a few rows at a time.

First come, first served; rows of one batch share their parameters, so batches never mix trials. Such an engine knows
no replicates: a fresh one gets another `generation_seed`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable, Iterable, Sequence

from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.decoding.requests import Completion, Finished, Generator, Request
from llmsearch_optuna.errors import DecodingError

BATCH_ROWS = 8


class OneMethodServer:
    """A request server around an engine of one method.

    Args:
        generator: Decodes prompts, all under one set of parameters.
        batch_rows: How many prompts it gets at most in one call.
    """

    def __init__(self, generator: Generator, *, batch_rows: int = BATCH_ROWS) -> None:
        self._generator = generator
        self._batch_rows = batch_rows
        self._queue: deque[Request] = deque()

    @property
    def capacity(self) -> int:
        """How many requests are worth having here; later ones may turn out to be needless."""
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
        return self._decode(batch)

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag."""
        self._queue = deque(request for request in self._queue if request.tag != tag)

    def _decode(self, batch: Sequence[Request]) -> list[Finished]:
        try:
            completions = list(self._generator.generate([r.prompt for r in batch], params_of_replicate(batch[0])))
            if len(completions) != len(batch):
                raise DecodingError(f"the engine returned {len(completions)} completions for {len(batch)} prompts")
        except DecodingError as error:
            return [Finished(request, None, error) for request in batch]
        except Exception as error:
            told = DecodingError(f"the engine raised {type(error).__name__}: {error}")
            return [Finished(request, None, told) for request in batch]
        return [Finished(request, _completion(given)) for request, given in zip(batch, completions, strict=True)]


def params_of_replicate(request: Request) -> GenerationParams:
    """The request's parameters; a fresh replicate of something sampled has a seed of its own."""
    params = request.params
    if request.replicate == 0 or params.get("do_sample") is not True:
        return params
    mixed = hashlib.sha256(f"{params.generation_seed} {request.replicate}".encode()).digest()
    return GenerationParams.of({**params.canonical, "generation_seed": int.from_bytes(mixed[:4], "big") >> 1})


def _completion(given: Completion | str) -> Completion:
    return Completion(given) if isinstance(given, str) else given
