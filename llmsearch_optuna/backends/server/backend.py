"""A server with OpenAI's interface as an engine: requests go in, completions come out, and the server decodes.

Face of the room: submit, poll, cancel. Requests are asked in an event loop beside the study's thread; what comes back
waits in a queue until the study polls.
"""

from __future__ import annotations

import logging
import queue
import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from llmsearch_optuna.backends.answers import answer_apart
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription, ParameterEnds, Repetition
from llmsearch_optuna.backends.server.backoff import Backoff
from llmsearch_optuna.backends.server.concurrency import ConcurrencyLimit
from llmsearch_optuna.backends.server.connection import Address, Connection, api_key
from llmsearch_optuna.backends.server.dispatcher import Dispatcher, Job
from llmsearch_optuna.backends.server.event_loop import EventLoopThread
from llmsearch_optuna.backends.server.failures import Failure, RequestFailedError
from llmsearch_optuna.backends.server.identity import Identity, base_name, identify
from llmsearch_optuna.backends.server.probe import effects, ignored_warning, repetition
from llmsearch_optuna.backends.server.reply import UNKNOWN_TOKEN_ID, Reply, read_reply
from llmsearch_optuna.backends.server.request_body import refusal, server_request, text_refusal
from llmsearch_optuna.engine.request import Completion, Finished, Request, log_finished
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import unknown_span
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, InputError, short
from llmsearch_optuna.types import DialectName

logger = logging.getLogger("llmsearch_optuna.server")

RETRY_SECONDS = 600.0
TIMEOUT_SECONDS = 600.0
FIRST_IN_FLIGHT = 4
"""Requests to begin with where a server does not say how many it works on at once."""

ONE_AT_A_TIME = ("transformers",)
"""Have one seed for all requests: one that runs beside another draws something else, and is no sooner done."""


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in any currency.

    Attributes:
        input: Of the prompt.
        output: Generated.
        cached_input: Of the prompt, where the server had them already; None: as the others.
    """

    input: float
    output: float
    cached_input: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, float]) -> Price:
        """Check a user's price.

        Raises:
            InputError: A name is unknown or missing, or a value is no price.
        """
        names = set(given) if isinstance(given, Mapping) else set()
        if not {"input", "output"} <= names <= {"input", "output", "cached_input"} or not all(
            isinstance(v, int | float) and 0 <= v <= sys.float_info.max for v in given.values()
        ):
            raise InputError(
                f"price={short(given)} must give the price of a million tokens as "
                "{'input': 0.5, 'output': 1.5}, with 'cached_input' if that differs"
            )
        return cls(**given)

    def cost(self, prompt_tokens: float, cached_tokens: float, completion_tokens: float) -> float:
        """Return what these tokens cost."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / 1e6


class ServerBackend(EngineBackend):
    """An engine that asks a server; `Engine.from_server` makes it.

    Args:
        url: Its address, such as ``http://127.0.0.1:8000/v1``.
        model: What the server calls its model; by default the only one that it lists.
        tokenizer: Templates prompts and makes tokens of them here, so that the server gets text or tokens. Without one
            it gets messages, and applies its own template.
        dialect: What kind of server it is; found by asking.
        api_key_env: The environment variable that holds the key.
        concurrency: Most requests in flight; ``"auto"`` finds out what makes the server fastest.
        retry_for: Seconds for which a request that failed for now is tried again before the study ends; 600 by
            default.
        timeout: Seconds to wait for one answer.
        price: What a million tokens cost: ``{"input": 0.5, "output": 1.5}``.
        skip_probe: Whether a new study begins without a few short texts that show what the server ignores.

    Raises:
        InputError: An argument cannot be used, or the server has no such model.
        EngineUnavailableError: The server does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        tokenizer: Any = None,
        dialect: DialectName | None = None,
        api_key_env: str | None = None,
        concurrency: int | Literal["auto"] = "auto",
        retry_for: float | None = None,
        timeout: float = TIMEOUT_SECONDS,
        price: Mapping[str, float] | None = None,
        skip_probe: bool = False,
    ) -> None:
        if concurrency != "auto" and (
            isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1
        ):
            raise InputError(f'concurrency={concurrency!r} must be "auto" or a number of requests from 1 on')
        retry_for = RETRY_SECONDS if retry_for is None else retry_for
        if not retry_for >= 0:
            raise InputError(f"retry_for={retry_for!r} must be a number of seconds from 0 on")
        self._address = Address.of(url)
        self._retry_for = retry_for
        self._skip_probe = skip_probe
        self._price = None if price is None else Price.of(price)
        self.tokenizer = tokenizer
        self._loop = EventLoopThread(f"requests to {self._address.host}")
        self._connection = self._loop.run(_connect(self._address, api_key(self._address, api_key_env), timeout))
        weakref.finalize(self, _close, self._loop, self._connection)
        self.identity = self._identify(model, dialect)
        if concurrency == "auto" and self.identity.dialect.name in ONE_AT_A_TIME:
            concurrency = 1
        start = (self.identity.slots or FIRST_IN_FLIGHT) if concurrency == "auto" else concurrency
        self._limit = ConcurrencyLimit(start, is_fixed=concurrency != "auto")
        self._results: queue.SimpleQueue[tuple[int, Reply | Failure]] = queue.SimpleQueue()
        self._dispatcher = Dispatcher(
            self._limit,
            answered=lambda ticket, reply: self._results.put((ticket, reply)),
            failed=lambda ticket, failure: self._results.put((ticket, failure)),
            work_of=lambda reply: 1.0 + (reply.completion_tokens or 0),
            retried=self._count_retry,
        )
        self._tickets = count()
        self._open: dict[int, Request] = {}
        self._failure: EngineUnavailableError | None = None
        self._total: Counter[str] = Counter()
        self._by_tag: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
        self._answering_model = ""
        self._warned_of_counts = False

    # What a search asks about

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the model by what the server says of it; neither the address nor a key is part of that.

        Args:
            tokenizer: Instead of the backend's own, from now on.
        """
        if tokenizer is not None:
            self.tokenizer = tokenizer
        return ModelDescription(
            name=base_name(self.identity.model),
            fingerprint={"server": dict(self.identity.description)},
            tokenizer=self.tokenizer,
            default_params=dict(self.identity.defaults),
            takes_messages=True,
            server=f"{self.identity.dialect.name} {self.identity.version}".strip(),
        )

    @property
    def default_params(self) -> Mapping[str, Any]:
        """What the server does where a client is silent, as far as it is known."""
        return dict(self.identity.defaults)

    @property
    def capacity(self) -> int:
        """How many requests are worth having here: those in flight, and as many to follow them."""
        return 2 * self._limit.limit

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters over everything that was asked."""
        return self._readable(self._total)

    def tag_stats(self, tag: Hashable) -> Mapping[str, Any]:
        """Counters over what was asked for one trial."""
        return self._readable(self._by_tag[tag])

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Say what of these parameters the server cannot be asked for; None where it can all."""
        return refusal(self.identity.dialect, params)

    @property
    def steers_thoughts(self) -> bool:
        """Whether our logits processor is loaded there, which ends thoughts itself."""
        return self.identity.dialect.picks_by_row

    def warnings(self, rows: Sequence[Request], ends: Sequence[ParameterEnds]) -> list[str]:
        """Say which searched parameters the server seems to ignore."""
        if self._skip_probe or not ends:
            return []
        ignored = ignored_warning(effects(self, rows, ends), self.identity.dialect.name)
        return [ignored] if ignored is not None else []

    def repetition(self, rows: Sequence[Request], *, only_alone: bool = False) -> Repetition | None:
        """Ask the same again, to see whether it is answered the same; None where no probe is wanted."""
        return None if self._skip_probe or not rows else repetition(self, rows, rows[0].params, only_alone=only_alone)

    def cost(self, prompt_tokens: float, cached_tokens: float, tokens: float) -> float | None:
        """Return what these tokens cost; None where no price was given."""
        return None if self._price is None else self._price.cost(prompt_tokens, cached_tokens, tokens)

    # Requests

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are asked first."""
        for request in requests:
            ticket = next(self._tickets)
            self._open[ticket] = request
            problem = self.refusal(request.params) or text_refusal(self.identity.dialect, request)
            if self.steers_thoughts:
                problem = problem or unknown_span(request.params, request.reasoning)
            if problem is not None:
                self._results.put((ticket, Failure("never", problem)))
                continue
            self._loop.call(self._dispatcher.add, Job(ticket, self._asker(request), Backoff(self._retry_for)))

    def poll(self) -> list[Finished]:
        """Wait until at least one request has ended and return all that have; empty when none is queued.

        Raises:
            EngineUnavailableError: The server cannot be used any more; all that was answered before has been returned.
        """
        finished: list[Finished] = []
        while self._open and not finished and self._failure is None:
            finished += self._taken(self._results.get())
        while not self._results.empty():
            finished += self._taken(self._results.get())
        if not finished and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        log_finished(logger, finished)
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag; those in flight are broken off."""
        for ticket in [ticket for ticket, request in self._open.items() if request.tag == tag]:
            del self._open[ticket]
            self._loop.call(self._dispatcher.cancel, ticket)

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        """Decode texts as they are (no chat template), all under one set of parameters.

        Raises:
            DecodingError: The server refuses one of them.
            EngineUnavailableError: It cannot be used.
        """
        checked = GenerationParams.of(params, self.default_params)
        tag = ("generate", id(prompts))
        self.submit(Request(tag, row, prompt, checked) for row, prompt in enumerate(prompts))
        found: dict[int, Completion] = {}
        try:
            while len(found) < len(prompts):
                for item in self.poll():
                    if item.completion is None:
                        raise item.error or DecodingError("no completion")
                    found[item.request.row] = item.completion
        finally:
            self.cancel(tag)
        return [found[row] for row in range(len(prompts))]

    def ask(self, requests: Sequence[Request]) -> list[Completion | None]:
        """Ask these requests at once, outside of any study; None for each that the server refuses."""
        tag = ("ask", next(self._tickets))
        places = {(request.row, request.replicate): place for place, request in enumerate(requests)}
        answers: list[Completion | None] = [None] * len(requests)
        self.submit(replace(request, tag=tag) for request in requests)
        missing = len(requests)
        try:
            while missing:
                for item in self.poll():
                    answers[places[item.request.row, item.request.replicate]] = item.completion
                    missing -= 1
        finally:
            self.cancel(tag)
        return answers

    def close(self) -> None:
        """Break off what is in flight and let go of the connections."""
        for tag in {request.tag for request in self._open.values()}:
            self.cancel(tag)
        _close(self._loop, self._connection)

    # Behind the face

    def _identify(self, model: str | None, dialect: DialectName | None) -> Identity:
        try:
            return self._loop.run(identify(self._connection, self._address, model=model, dialect=dialect))
        except RequestFailedError as error:
            raise self._unavailable(error.failure) from error

    def _asker(self, request: Request) -> Callable[[], Awaitable[Reply]]:
        dialect, beams = self.identity.dialect, int(request.params.get("num_beams", 1))
        asked = server_request(dialect, self.identity.model, request, self._prompt_ids(request))

        async def ask() -> Reply:
            body = await self._connection.post(asked.path, asked.body)
            reply = read_reply(body, max_new_tokens=request.params.max_new_tokens, beams=beams)
            self._check_model(reply.model)
            return reply

        return ask

    def _prompt_ids(self, request: Request) -> list[int] | None:
        """The prompt in tokens, where there is a tokenizer and the server takes them: no second BOS is added there."""
        if request.chat is not None or self.tokenizer is None or not self.identity.dialect.takes_token_ids:
            return None
        extra = {} if request.add_special_tokens is None else {"add_special_tokens": request.add_special_tokens}
        ids: list[int] = self.tokenizer(request.prompt, **extra, **request.encode_args)["input_ids"]
        return ids

    def _check_model(self, answering: str) -> None:
        if not self._answering_model:
            self._answering_model = answering
        elif answering and answering != self._answering_model:
            raise RequestFailedError(
                Failure(
                    "stop",
                    f"it answers as {answering!r} now, and answered as {self._answering_model!r} before: rows of two "
                    "models cannot be compared",
                )
            )

    def _taken(self, result: tuple[int, Reply | Failure]) -> list[Finished]:
        ticket, outcome = result
        request = self._open.pop(ticket, None)
        if request is None:  # cancelled meanwhile
            return []
        if isinstance(outcome, Reply):
            self._count_reply(request, outcome)
            return [Finished(request, answer_apart(self._counted(outcome), request))]
        if outcome.kind == "never":
            return [Finished(request, None, DecodingError(f"the server says: {outcome.reason}"))]
        self._open[ticket] = request  # still not answered
        self._failure = self._unavailable(outcome)
        return []

    def _counted(self, reply: Reply) -> Completion:
        """The completion, with its tokens counted here where the server has not done it."""
        text = reply.completion.text
        if reply.completion_tokens is not None or not text:
            return reply.completion
        if self.tokenizer is not None:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return replace(reply.completion, token_ids=tuple(ids))
        if not self._warned_of_counts:
            self._warned_of_counts = True
            logger.warning(
                "the server does not say how many tokens it generated; each word counts as one. With tokenizer= they "
                "are counted here"
            )
        words = max(1, len(text.split()))
        return replace(reply.completion, token_ids=(UNKNOWN_TOKEN_ID,) * words)

    def _count_reply(self, request: Request, reply: Reply) -> None:
        generated = reply.completion_tokens or 0
        counted = Counter(
            requests=1,
            prefill_tokens=reply.prompt_tokens - reply.cached_tokens,
            cached_prompt_tokens=reply.cached_tokens,
            forward_tokens=generated,
            tokens=generated,
            rows_with_reasoning=int(reply.has_reasoning),
        )
        self._total.update(counted)
        self._by_tag[request.tag].update(counted)

    def _count_retry(self, ticket: int, failure: Failure) -> None:
        self._total["retries"] += 1
        request = self._open.get(ticket)
        if request is not None:
            self._by_tag[request.tag]["retries"] += 1
        level = logging.WARNING if self._total["retries"] == 1 else logging.DEBUG
        logger.log(level, "asking %s again: %s", self._address.host, failure.reason)

    def _readable(self, counters: Counter[str]) -> dict[str, Any]:
        found: dict[str, Any] = dict(counters)
        if self._price is not None:
            cached = counters["cached_prompt_tokens"]
            cost = self._price.cost(counters["prefill_tokens"] + cached, cached, counters["tokens"])
            found["cost"] = round(cost, 6)
        return found

    def _unavailable(self, failure: Failure) -> EngineUnavailableError:
        mended = "when this is mended"
        reason = failure.reason
        if failure.kind == "not now":
            mended = "when it is back"
            reason += f" (tried for {self._retry_for:g} s, which retry_for= says)"
        return EngineUnavailableError(
            f"the server at {self._address.url} cannot be used: {reason}. Nothing that was decoded is lost: give the "
            f"same command again {mended}"
        )


async def _connect(address: Address, key: str | None, timeout: float) -> Connection:
    return Connection(address, key, timeout=timeout)


def _close(loop: EventLoopThread, connection: Connection) -> None:
    if not loop.is_closed:
        loop.run(connection.close())
        loop.close()
