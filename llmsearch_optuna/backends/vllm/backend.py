"""vLLM in the same process as an engine: every row of every trial is a request of its step loop."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription, ParameterEnds
from llmsearch_optuna.backends.vllm.sampling_arguments import (
    PROCESSOR,
    beam_arguments,
    is_beam,
    picked_by_row,
    picked_by_vllm,
    refusal,
)
from llmsearch_optuna.backends.vllm.step_engine import StepEngine, StepOutput, is_out_of_memory
from llmsearch_optuna.engine.completions import completion_of
from llmsearch_optuna.engine.request import Completion, Finished, FinishReason, Request, log_finished
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import about_thinking, unknown_span
from llmsearch_optuna.engine.sampling.stop import Stopper, StopState, check_decode_args
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, describe_error
from llmsearch_optuna.models.tokenization import Positions, PromptTokens, TokenIds
from llmsearch_optuna.transient_errors import unavailable

logger = logging.getLogger("llmsearch_optuna.vllm")


@dataclass(frozen=True)
class _Row:
    """A request that vLLM has."""

    request: Request
    prompt: TokenIds
    stop: StopState


class VllmBackend(EngineBackend):
    """Decodes by vLLM's step loop.

    Greedy and sampled rows of all trials are in one batch. Rows with beams wait until nothing else is under way, since
    vLLM's beam search runs the engine by itself.

    Args:
        engine: vLLM.
        tokenizer_decode_args: What the tokenizer's ``decode`` is called with.
    """

    def __init__(self, engine: StepEngine, tokenizer_decode_args: Mapping[str, Any] | None = None) -> None:
        self._engine = engine
        self.facts = engine.facts
        self.tokenizer = self.facts.tokenizer
        self.tokenizer_decode_args = check_decode_args(self.tokenizer, tokenizer_decode_args or {})
        self._positions = Positions(shared=self.facts.context)
        self._special = tuple(token for token in self.tokenizer.all_special_tokens if token)
        self._prompt_tokens = PromptTokens(self.tokenizer)
        self._refusals: dict[GenerationParams, str | None] = {}
        self._queue: deque[Request] = deque()
        self._open: dict[str, _Row] = {}
        self._done: list[Finished] = []
        self._numbers = count()
        self._stoppers: dict[GenerationParams, Stopper] = {}
        self._total: Counter[str] = Counter()
        self._by_tag: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)

    # What a search asks about

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the model by what vLLM says of it.

        Args:
            tokenizer: The user's, instead of the model's own, from now on.
        """
        if tokenizer is not None:
            self.tokenizer = tokenizer
            self._special = tuple(token for token in tokenizer.all_special_tokens if token)
            self._prompt_tokens = PromptTokens(tokenizer)
            self._stoppers.clear()
        decoding = {"tokenizer_decode_args": self.tokenizer_decode_args} if self.tokenizer_decode_args else {}
        return ModelDescription(
            self.facts.name,
            {**self.facts.description, **decoding},
            self.tokenizer,
            dict(self.facts.default_params),
            self._positions,
            prompt_tokens=self._prompt_tokens,
        )

    @property
    def default_params(self) -> Mapping[str, Any]:
        """The model's generation configuration."""
        return dict(self.facts.default_params)

    @property
    def capacity(self) -> int:
        """How many requests vLLM works on at once."""
        return self.facts.slots

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters over everything."""
        return dict(self._total)

    def tag_stats(self, tag: Hashable) -> Mapping[str, Any]:
        """Counters over one trial."""
        return dict(self._by_tag[tag])

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Say what of these parameters vLLM cannot be asked for; None where it can all."""
        found = refusal(params, by_row=self.facts.picks_by_row)
        complete = GenerationParams.of(params)
        if found is None and not is_beam(complete):
            known = set(complete) - set(about_thinking(complete))  # the rest is for our processor, with its markers
            complete = GenerationParams.of({"max_new_tokens": 1, **{name: complete[name] for name in known}})
            found = self._engine.problem(self._arguments(Request("", 0, "", complete), ()))
        return found

    @property
    def steers_thoughts(self) -> bool:
        """Whether our logits processor is loaded, which ends thoughts itself."""
        return self.facts.picks_by_row

    def warnings(self, rows: Sequence[Request], ends: Sequence[ParameterEnds]) -> list[str]:
        """Say what this LLM was made without."""
        found = []
        if not self.facts.picks_by_row and any(end.high.kind == "sampling" for end in ends):
            found.append(
                "this vllm.LLM samples by its own rules and noise; with "
                f"LLM(..., logits_processors=[{PROCESSOR!r}]) rows do not depend on their neighbours, and all of this "
                "library's parameters can be searched"
            )
        if not self.facts.caches_prefixes:
            found.append(
                "this vllm.LLM computes every prompt anew for every trial; LLM(..., enable_prefix_caching=True) "
                "computes it once"
            )
        return found

    # Requests

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        for request in requests:
            problem = self._refusal(request.params)
            if self.steers_thoughts:
                problem = problem or unknown_span(request.params, request.reasoning)
            if problem is not None:
                self._done.append(Finished(request, None, DecodingError(problem)))
            else:
                self._queue.append(request)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued.

        Raises:
            EngineUnavailableError: vLLM has died or has no memory; nothing of the rows under way is lost.
        """
        while not self._done:
            self._admit()
            if self._open:
                self._step()
            elif self._queue:
                self._search_beams()
            elif not self._done:
                return []
        finished, self._done = self._done, []
        log_finished(logger, finished)
        return finished

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag; those under way are broken off."""
        self._queue = deque(request for request in self._queue if request.tag != tag)
        self._done = [item for item in self._done if item.request.tag != tag]
        dropped = [name for name, row in self._open.items() if row.request.tag == tag]
        for name in dropped:
            del self._open[name]
        if dropped:
            with contextlib.suppress(EngineUnavailableError), _told():  # a dead engine works on nothing
                self._engine.abort(dropped)

    # Behind the face

    def _admit(self) -> None:
        """Hand rows to vLLM, up to the first one with beams."""
        while self._queue and not is_beam(self._queue[0].params):
            request = self._queue[0]
            try:
                prompt = self._prompt(request)
                name = f"llmsearch-{next(self._numbers)}"
                with _told():
                    self._engine.add(
                        name, prompt, self._arguments(request, prompt), streams=_ends_by_text(request.params)
                    )
                self._open[name] = _Row(request, prompt, self._stopper(request.params).start())
            except DecodingError as error:
                self._done.append(Finished(request, None, error))
            self._queue.popleft()

    def _step(self) -> None:
        with _told():
            outputs = self._engine.step()
        broken_off = [name for output in outputs if (name := self._take(output)) is not None]
        if broken_off:
            with _told():
                self._engine.abort(broken_off)

    def _take(self, output: StepOutput) -> str | None:
        """Take a request's new tokens; its name where it has ended and vLLM does not know."""
        row = self._open.get(output.request_id)
        if row is None:  # cancelled, or somebody else's
            return None
        if output.finish_reason in ("abort", "error"):
            raise _cannot_be_used(f"vLLM broke off row {row.request.row} ({output.finish_reason})")
        for token in output.token_ids:
            if row.stop.push(token) is not None:
                break
        if row.stop.reason is None and output.finish_reason is None:
            return None
        del self._open[output.request_id]
        reason = row.stop.reason or ("length" if output.finish_reason == "length" else "eos")
        tokens, prompt_tokens = row.stop.token_ids, len(row.prompt)
        completion = self._completion(row.request, row.prompt, tokens, reason)
        self._done.append(Finished(row.request, completion))
        self._count(row.request, prompt_tokens, output.cached_tokens, len(tokens), len(tokens))
        return output.request_id if output.finish_reason is None else None

    def _search_beams(self) -> None:
        """Decode the first row with beams, and others of its kind beside it; all of them stay queued if vLLM dies."""
        params = self._queue[0].params
        most = max(1, self.facts.slots // int(params["num_beams"]))
        batch = [request for request in self._queue if request.params == params][:most]
        prompts = [self._prompt_or_error(request) for request in batch]
        usable = [prompt for prompt in prompts if not isinstance(prompt, DecodingError)]
        found = iter(self._beams(usable, beam_arguments(params)) if usable else ())
        for request, prompt in zip(batch, prompts, strict=True):
            tokens = prompt if isinstance(prompt, DecodingError) else next(found)
            if isinstance(tokens, DecodingError):
                self._done.append(Finished(request, None, tokens))
            else:
                assert not isinstance(prompt, DecodingError)
                self._take_beam(request, prompt, tokens)
        taken = set(map(id, batch))
        self._queue = deque(request for request in self._queue if id(request) not in taken)

    def _prompt_or_error(self, request: Request) -> TokenIds | DecodingError:
        try:
            return self._prompt(request)
        except DecodingError as error:
            return error

    def _beams(
        self, prompts: Sequence[TokenIds], arguments: Mapping[str, Any]
    ) -> list[tuple[int, ...] | DecodingError]:
        """Decode prompts together; where that fails, again in halves, so that a bad one fails alone."""
        try:
            with _told():
                return list(self._engine.beam_search(prompts, arguments))
        except DecodingError as error:
            if len(prompts) == 1:
                return [error]
        middle = len(prompts) // 2
        return self._beams(prompts[:middle], arguments) + self._beams(prompts[middle:], arguments)

    def _take_beam(self, request: Request, prompt: TokenIds, tokens: tuple[int, ...]) -> None:
        state = self._stopper(request.params).replay(tokens)
        ids = state.token_ids
        completion = self._completion(request, prompt, ids, state.reason or "length")
        self._done.append(Finished(request, completion))
        self._count(request, len(prompt), 0, len(ids), len(ids) * int(request.params["num_beams"]))

    def _completion(
        self, request: Request, prompt: TokenIds, tokens: Sequence[int], reason: FinishReason
    ) -> Completion:
        state = None if request.reasoning is None else request.reasoning.state(prompt, tokens)
        return completion_of(self._stopper(request.params), tokens, reason, len(prompt), state)

    def _prompt(self, request: Request) -> TokenIds:
        """The token ids of a prompt.

        Raises:
            DecodingError: It is empty, or there is no room for it.
        """
        add = request.add_special_tokens
        if add is None:
            add = not request.prompt.startswith(self._special)
        ids = self._prompt_tokens.ids(request.prompt, add, request.encode_args)
        if not ids:
            raise DecodingError(f"row {request.row}: the prompt is empty after tokenization")
        if (problem := self._positions.problem(len(ids), request.params.max_new_tokens)) is not None:
            raise DecodingError(f"row {request.row}: {problem}")
        return ids

    def _arguments(self, request: Request, prompt: Sequence[int]) -> dict[str, Any]:
        if self.facts.picks_by_row:
            return picked_by_row(request)
        return picked_by_vllm(request, row_key(prompt, request.occurrence, request.replicate))

    def _refusal(self, params: GenerationParams) -> str | None:
        if params not in self._refusals:
            self._refusals[params] = refusal(params, by_row=self.facts.picks_by_row)
        return self._refusals[params]

    def _stopper(self, params: GenerationParams) -> Stopper:
        if params not in self._stoppers:
            self._stoppers[params] = Stopper(params, self.tokenizer, self.tokenizer_decode_args)
        return self._stoppers[params]

    def _count(self, request: Request, prompt_tokens: int, cached: int, tokens: int, computed: int) -> None:
        counted = {
            "prefill_tokens": prompt_tokens - cached,
            "prefill_tokens_saved": cached,
            "forward_tokens": computed,
            "tokens": tokens,
        }
        self._total.update(counted)
        self._by_tag[request.tag].update(counted)


def _ends_by_text(params: GenerationParams) -> bool:
    """Whether a row may end before vLLM would end it."""
    return bool(params.stop or params.stop_token_sequences)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what vLLM raises: it is away, or it cannot decode this."""
    try:
        yield
    except (EngineUnavailableError, DecodingError):
        raise
    except Exception as error:
        if unavailable(error) is not None or is_out_of_memory(error):
            raise _cannot_be_used(describe_error(error)) from error
        raise DecodingError(f"vLLM raised {describe_error(error)}") from error


def _cannot_be_used(reason: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"vLLM cannot be used any more: {reason}. Nothing that was decoded is lost: give the same command again, with "
        "a new vllm.LLM if the old one was yours"
    )
