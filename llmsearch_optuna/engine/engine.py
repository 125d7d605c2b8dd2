"""The engine: requests go in, completions come out, and nothing is computed twice.

`Engine.step` is the whole loop: schedule a batch, run it, sample the next tokens, update the sequences.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmsearch_optuna.backends.function import FunctionEngine
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.declaration import completed
from llmsearch_optuna.engine.arguments import check_engine_arguments, check_server_arguments
from llmsearch_optuna.engine.batch_runner import BatchRunner
from llmsearch_optuna.engine.batch_size import BatchSizes
from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache
from llmsearch_optuna.engine.cache.offload import HostOffload
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.input_batch import InputBatch
from llmsearch_optuna.engine.likelihood import cumulative_logprob
from llmsearch_optuna.engine.memory import automatic_cache_budget, device_name
from llmsearch_optuna.engine.model_runner import TOP_CANDIDATES, evaluating, without_cudnn_attention
from llmsearch_optuna.engine.model_runner_seq2seq import model_runner_for
from llmsearch_optuna.engine.named_tokens import unknown_token
from llmsearch_optuna.engine.out_of_memory import MemoryReclaimer, NoRoomError, one_row_does_not_fit
from llmsearch_optuna.engine.prompt_encoder import PromptEncoder
from llmsearch_optuna.engine.request import Completion, Finished, Request, checked_prompts, log_finished
from llmsearch_optuna.engine.sampling.param_specs import is_of_task
from llmsearch_optuna.engine.sampling.params import SERVER_NAMES, GenerationParams, model_defaults
from llmsearch_optuna.engine.sampling.reasoning import ReasoningOption, reasoning_span, unknown_span
from llmsearch_optuna.engine.sampling.stop import check_decode_args
from llmsearch_optuna.engine.scheduler import Scheduler, automatic_sizes
from llmsearch_optuna.engine.sequence import SequenceFactory
from llmsearch_optuna.engine.sequence_sampler import SequenceSampler
from llmsearch_optuna.engine.stats import Counters, EngineStats
from llmsearch_optuna.errors import DecodingError, InputError, short
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from llmsearch_optuna.options import ServerOptions

if TYPE_CHECKING:
    from llmsearch_optuna.backends.server.backend import ServerBackend
    from llmsearch_optuna.types import DialectName

logger = logging.getLogger("llmsearch_optuna.engine")


class Engine(EngineBackend):
    """Decodes many prompts under many parameter sets with one model.

    Tokens do not depend on batch size, order or neighbours: greedy tokens are those of ``model.generate`` on
    the prompt alone (float32), and a sampled token is a function of the prompt, the parameters and their
    ``generation_seed``. Prompts, prefixes and scores of earlier calls are used again within the budget.

    Args:
        model: A Hugging Face model. It decodes in evaluation mode, and is left in the mode that it was in.
        tokenizer: Its tokenizer.
        batch_size: Most rows in one pass; ``"auto"`` estimates it from the free memory.
        cache_budget: Bytes for stored scores, keys and values; ``"auto"`` is half of the free memory, 0 none. On CUDA,
            keys and values that have no room move to half of the host's free memory.
        tokenizer_decode_args: What the tokenizer's ``decode`` is called with; special tokens are skipped unless this
            says otherwise.
        top: How many of the largest logits of a prefix are stored to sample from.

    Raises:
        InputError: For a batch size that is not from 1 to 65,536, ``top`` below 1, a negative budget, or arguments that
            the tokenizer does not take.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | Literal["auto"] = "auto",
        cache_budget: int | Literal["auto"] = "auto",
        tokenizer_decode_args: Mapping[str, Any] | None = None,
        top: int = TOP_CANDIDATES,
    ) -> None:
        check_engine_arguments(model, tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=top)
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_decode_args = check_decode_args(
            tokenizer, {} if tokenizer_decode_args is None else tokenizer_decode_args
        )
        self.default_params: dict[str, Any] = model_defaults(model)
        with evaluating(model), without_cudnn_attention():
            self._runner = model_runner_for(model, top=top)
        device = self._runner.device
        budget = automatic_cache_budget(device) if cache_budget == "auto" else cache_budget
        self._cache = PrefixCache(budget, self._runner.start, HostOffload.behind(device))
        sizes = automatic_sizes(self._runner, budget) if batch_size == "auto" else BatchSizes(batch_size)
        self._sizes = sizes
        self._counters = Counters()
        stats = self._counters.total
        input_batch: InputBatch | None = None
        self._encoder_cache = EncoderCache(0)
        if self._runner.capabilities.shape is not None:
            input_batch = InputBatch(self._runner.buffer(min(sizes.maximum, 8)), self._cache, self._runner, stats)
        else:
            # Without a prefix cache the budget is free for what the encoder makes.
            self._encoder_cache = EncoderCache(budget)
            logger.warning("%s: %s", type(model).__name__, self._runner.capabilities)
        reclaimer = MemoryReclaimer(sizes, self._cache, self._encoder_cache, input_batch, stats, device)
        self._reclaimer = reclaimer
        sequences = SequenceFactory(tokenizer, self.tokenizer_decode_args, self._runner.vocab_size)
        self._scheduler = Scheduler(self._runner, self._cache, sizes, sequences.make, self._counters)
        self._sampler = SequenceSampler(self._runner, self._cache, reclaimer, stats)
        self._batches = BatchRunner(
            self._runner,
            tokenizer,
            self.tokenizer_decode_args,
            cache=self._cache,
            encoder_cache=self._encoder_cache,
            input_batch=input_batch,
            reclaimer=reclaimer,
            scheduler=self._scheduler,
            counters=self._counters,
        )
        self._encoder = PromptEncoder(PromptTokens(tokenizer), Positions.of(model.config), _embeddings(model))

    @staticmethod
    def from_function(
        function: Callable[[list[str], dict[str, Any]], Iterable[str]],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        default_params: Mapping[str, Any] | None = None,
    ) -> FunctionEngine:
        """Make an engine of a function from prompts and parameters to texts; `search` and `score` take it as a model.

        >>> def echo(prompts, params):
        ...     return [prompt[: params["max_new_tokens"]] for prompt in prompts]
        >>> engine = Engine.from_function(echo)
        >>> engine.generate(["one", "two"], {"max_new_tokens": 2})[0].text
        'on'

        Args:
            function: ``function(prompts, params)`` returns one text a prompt; see `FunctionEngine`. It is asked for a
                few rows at a time (`search` has ``batch_size=`` for how many), and counts by its source text.
            tokenizer: For chat templates, and where tokens have to be counted.
            default_params: What the function does where a parameter is left out: the baseline.
        """
        return FunctionEngine(function, tokenizer, {} if default_params is None else default_params)

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the model; all its weights are read for the fingerprint.

        Args:
            tokenizer: The user's, instead of the engine's own.
        """
        from llmsearch_optuna.models.loader import load

        shown = self.tokenizer if tokenizer is None else tokenizer
        return ModelDescription.of_loaded(
            load(self.model, shown),
            tokenizer=shown,
            default_params=self.default_params,
            tokenizer_decode_args=self.tokenizer_decode_args,
            prompt_tokens=self.prompt_tokens if shown is self.tokenizer else None,
        )

    @property
    def prompt_tokens(self) -> PromptTokens:
        """The token ids of the prompts that were asked for or counted."""
        return self._encoder.tokens

    @staticmethod
    def from_server(
        url: str,
        *,
        model: str | None = None,
        tokenizer: Any = None,
        dialect: DialectName | None = None,
        api_key_env: str | None = None,
        concurrency: int | Literal["auto"] = "auto",
        retry_for: float | None = None,
        price: Mapping[str, float] | None = None,
        skip_probe: bool = False,
    ) -> ServerBackend:
        """Make an engine of a server with OpenAI's interface; `search` and `score` take it as a model.

        ``search("http://127.0.0.1:8000/v1", ...)`` does the same, and works from a study file and with workers, too.

        Args:
            url: The server's address.
            model: What the server calls its model; by default the only one that it lists.
            tokenizer: The model's, for text that is templated here instead of messages.
            dialect: What kind of server it is; found by asking.
            api_key_env: The environment variable that holds the server's key.
            concurrency: Most requests in flight; ``"auto"`` finds what makes the server fastest.
            retry_for: Seconds for which a server that does not answer is asked again; 600 by default.
            price: What a million tokens cost: ``{"input": 0.5, "output": 1.5}``.
            skip_probe: Begin a study without a few short texts that show which parameters the server ignores.

        Raises:
            InputError: The openai package is missing, or an argument cannot be used.
            EngineUnavailableError: The server does not answer.
        """
        from llmsearch_optuna.backends.server import connect

        check_server_arguments(url, model=model, api_key_env=api_key_env)
        numbers_and_words = {"dialect": dialect, "concurrency": concurrency, "retry_for": retry_for}
        completed(ServerOptions, {**numbers_and_words, "skip_probe": skip_probe}, "Engine.from_server")
        return connect(
            url,
            model=model,
            tokenizer=tokenizer,
            dialect=dialect,
            api_key_env=api_key_env,
            concurrency=concurrency,
            retry_for=retry_for,
            price=price,
            skip_probe=skip_probe,
        )

    @property
    def capabilities(self) -> str:
        """What this model gets, in words."""
        return str(self._runner.capabilities)

    @property
    def cache_budget(self) -> int:
        """Bytes that stored scores, keys and values may take."""
        return self._cache.budget

    @property
    def capacity(self) -> int:
        """How many requests it can make use of at the moment."""
        return self._sizes.rows

    @property
    def device_name(self) -> str:
        """What device this is, and how much memory it has."""
        return device_name(self._runner.device)

    @property
    def batch_sizes(self) -> dict[tuple[int, int], int]:
        """(length bucket, beams) -> rows in one pass, where memory has been too short for more; see `batch_sizes`."""
        return self._sizes.learned

    def start_from(self, batch_sizes: Mapping[tuple[int, int], int]) -> None:
        """Begin with batch sizes that were learned before on the same device; tokens do not depend on them."""
        self._sizes.start_from(batch_sizes)

    @property
    def stats(self) -> EngineStats:
        """A snapshot of what has been done so far."""
        stats = self._counters.total
        stats.forward_seconds = self._runner.timer.seconds
        stats.cache_bytes = self._cache.nbytes + self._encoder_cache.nbytes
        stats.host_bytes = self._cache.host_blocks.nbytes
        stats.evictions = self._cache.evictions
        return stats.snapshot()

    def tag_stats(self, tag: Hashable) -> EngineStats:
        """Tokens, computed and replayed, of the requests with one tag."""
        return self._counters.of(tag).snapshot()

    def generate(
        self,
        prompts: Sequence[str],
        params: Mapping[str, Any],
        *,
        reasoning: ReasoningOption = "auto",
        logprobs: bool = False,
    ) -> list[Completion]:
        """Decode prompts (texts that are ready for the model) under one set of parameters.

        Args:
            prompts: Any number; equal prompts draw different noise.
            params: Generation parameters by name, over the model's own generation config.
            reasoning: Between which two texts the model thinks: those of its tokenizer and chat template by default,
                False for none. What stands there is in each completion's ``reasoning``, and not in its ``text``.
            logprobs: Whether each completion is to say how likely its tokens are (``mean_logprob``).

        Returns:
            One completion a prompt, in the order of the prompts.

        Raises:
            DecodingError: For a prompt that could not be decoded.
            InputError: The prompts are no list of texts, or the parameters say ``samples``.
        """
        complete = params if isinstance(params, GenerationParams) else GenerationParams.of(params, self.default_params)
        if complete.samples > 1:
            raise InputError(
                f"samples={complete.samples}: generate gives one completion a prompt; give each prompt "
                f"{complete.samples} times, or score(..., samples={complete.samples}) for what they are worth together"
            )
        if not isinstance(logprobs, bool):
            raise InputError(f"logprobs={short(logprobs)} must be True or False")
        tag, seen, span = object(), Counter[str](), reasoning_span(reasoning, self.tokenizer)
        requests = []
        for row, prompt in enumerate(checked_prompts(prompts)):
            request = Request(tag, row, prompt, complete, seen[prompt], reasoning=span, logprobs=logprobs)
            requests.append(request)
            seen[prompt] += 1
        completions: dict[int, Completion] = {}
        others: list[Finished] = []
        try:
            self.submit(requests)
            while len(completions) < len(requests):
                for finished in self.poll():
                    if finished.request.tag is not tag:
                        others.append(finished)
                    elif finished.completion is None:
                        raise finished.error or DecodingError(f"row {finished.request.row} gave no completion")
                    else:
                        completions[finished.request.row] = finished.completion
        finally:  # whatever ends it, Ctrl-C in a notebook included, leaves nothing of it for the next call
            self.cancel(tag)
            self._scheduler.finished += others
            self._counters.forget(tag)
        return [completions[row] for row in range(len(requests))]

    @property
    def steers_thoughts(self) -> bool:
        """Whether it ends thoughts itself: it does."""
        return True

    @property
    def gives_logprobs(self) -> bool:
        """Whether it says how likely its tokens are: it does."""
        return True

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Say which of these parameters are none of an engine's; None where there is none."""
        if of_task := [name for name in params if is_of_task(name)]:
            return f"{', '.join(of_task)} says what is asked for, and prompts are given to an engine as they are"
        if unknown := unknown_token(params, self._runner.vocab_size):
            return unknown
        found = ", ".join(name for name in SERVER_NAMES if name in params)
        return f"only servers apply {found}; leave it out, or search a server" if found else None

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        for request in requests:
            reason = self.refusal(request.params) or unknown_span(request.params, request.reasoning)
            if reason is not None:
                self._scheduler.fail(request, DecodingError(reason))
                continue
            try:
                self._scheduler.add(request, self._encoder.encode(request))
            except DecodingError as error:
                self._scheduler.fail(request, error)

    def expect(self, requests: Iterable[Request]) -> None:
        """Take note of what will be asked for in the long run, before the first prompt is computed.

        What these prompts begin with is then computed once for all, for every call apart. Without it those count that
        are queued when the first one is computed, which may be few.
        """
        encoded = []
        for request in requests:
            with contextlib.suppress(DecodingError):  # raised again when it is asked for
                encoded.append((request, self._encoder.encode(request)))
        self._scheduler.expect(encoded)

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued."""
        started = time.perf_counter()
        scheduler = self._scheduler
        try:
            with evaluating(self.model), without_cudnn_attention():
                while scheduler.has_work and (not scheduler.finished or scheduler.has_ready()):
                    self.step()
        finally:
            self._counters.total.seconds += time.perf_counter() - started
        finished = [self._with_logprob(item) for item in scheduler.take_finished()]
        log_finished(logger, finished)
        return finished

    def step(self) -> None:
        """Compute one batch, and let every sequence whose scores are there go on by one token."""
        batch = self._scheduler.schedule()
        self._batches.run(batch)
        sampled = self._sampler.sample(self._scheduler.ready())
        self._scheduler.update(sampled)

    def _with_logprob(self, finished: Finished) -> Finished:
        """Say how likely a completion is where it was not decoded token by token: beams, and `model.generate`."""
        request, completion = finished.request, finished.completion
        if completion is None or not request.logprobs or completion.cumulative_logprob is not None:
            return finished
        prompt_ids = self._encoder.encode(request)
        try:
            with evaluating(self.model), without_cudnn_attention():
                found = self._reclaimer.retry(
                    lambda: cumulative_logprob(self.model, prompt_ids, completion.token_ids, request.params),
                    self._cache.evict_blocks,
                )
        except NoRoomError as error:
            return Finished(request, None, one_row_does_not_fit(str(error)))
        return Finished(request, replace(completion, cumulative_logprob=found))

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued; what they computed is kept."""
        self._scheduler.cancel(tag)


def _embeddings(model: Any) -> int | None:
    """How many tokens a model's input embedding knows."""
    shape: Any = getattr(getattr(model.get_input_embeddings(), "weight", None), "shape", ())
    return int(shape[0]) if len(shape) == 2 else None
