"""The interface between a search and whatever decodes: the members that a backend must have, and those it may have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.models.tokenization import Positions, PromptTokens

if TYPE_CHECKING:
    from llmsearch_optuna.engine.stats import EngineStats
    from llmsearch_optuna.models.loader import LoadedModel

CAPACITY = 64
"""Requests to submit to a backend that does not say how many it can make use of."""


class RequestHandler(Protocol):
    """Takes requests, and returns each of them when it has ended."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""
        ...

    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued."""
        ...

    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued; what they computed is kept."""
        ...


class TextGenerator(Protocol):
    """An object of the user's own that decodes by one method."""

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> Sequence[Completion | str]:
        """Return one completion a prompt, in the order of the prompts."""
        ...


@dataclass(frozen=True)
class ModelDescription:
    """What a search has to know of the model behind a backend.

    Attributes:
        name: For people, and for the name of a study that has none.
        fingerprint: What results depend on (weights, dtype, tokenizer, ...): a study goes on only with an equal one.
        tokenizer: Applies chat templates and counts the tokens of prompts; None where there is none.
        default_params: What holds where a configuration is silent: the baseline.
        positions: How many tokens the model has room for.
        takes_messages: Whether the backend applies the model's chat template itself, so that prompts reach it as
            messages where there is no tokenizer here.
        prompt_tokens: What the backend tokenizes prompts with, so that a prompt is not tokenized once more to be
            counted; None where it has no such thing, or the tokenizer is another one.
        server: Which program answers, for people, where it is a server; nothing follows from it.
    """

    name: str
    fingerprint: Mapping[str, Any]
    tokenizer: Any = None
    default_params: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions = field(default_factory=Positions)
    takes_messages: bool = False
    prompt_tokens: PromptTokens | None = field(default=None, compare=False)
    server: str = field(default="", compare=False)

    @classmethod
    def of_loaded(
        cls,
        loaded: LoadedModel,
        *,
        tokenizer: Any,
        default_params: Mapping[str, Any],
        tokenizer_decode_args: Mapping[str, Any] | None,
        prompt_tokens: PromptTokens | None = None,
    ) -> ModelDescription:
        """Describe a Hugging Face model.

        Args:
            loaded: The model; all its weights are read for the fingerprint.
            tokenizer: The tokenizer to show.
            default_params: The model's generation configuration.
            tokenizer_decode_args: How tokens become text, which counts where a user has set it.
            prompt_tokens: What tokenizes the prompts to be decoded.
        """
        decoding = {"tokenizer_decode_args": dict(tokenizer_decode_args)} if tokenizer_decode_args else {}
        return cls(
            loaded.name,
            {**loaded.description, **decoding},
            tokenizer,
            dict(default_params),
            loaded.positions,
            prompt_tokens=prompt_tokens,
        )


@dataclass(frozen=True)
class ParameterEnds:
    """Two configurations that differ in one searched parameter only.

    Attributes:
        name: Of the parameter.
        low: With its lowest or first value.
        high: With its highest or last.
    """

    name: str
    low: GenerationParams
    high: GenerationParams


@dataclass(frozen=True)
class Repetition:
    """How many rows had the same text again when the same was asked again.

    Attributes:
        rows: How many were asked.
        alone: The same text again, asked one by one.
        beside_others: The same text when asked together with other requests.
        texts: A digest of each row's text, asked alone; empty where it was refused.
    """

    rows: int
    alone: int
    beside_others: int
    texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        beside = f"{self.beside_others} of {self.rows} beside others"
        return f"the same seed gives the same text for {self.alone} of {self.rows} rows alone, and for {beside}"

    @property
    def is_steady(self) -> bool:
        """Whether every row had the same text every time."""
        return min(self.alone, self.beside_others) == self.rows


class EngineBackend(ABC):
    """Decodes requests for a search. A new backend derives from it.

    Required: `submit`, `poll` and `cancel`. Everything else is optional, and documented with what holds for a backend
    that does not define it.
    """

    @abstractmethod
    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; earlier ones are served first."""

    @abstractmethod
    def poll(self) -> list[Finished]:
        """Work until at least one request has ended and return all that have; empty when none is queued."""

    @abstractmethod
    def cancel(self, tag: Hashable) -> None:
        """Drop all requests with this tag, in flight or queued; what they computed is kept."""

    def describe(self, tokenizer: Any = None) -> ModelDescription:
        """Describe the model. Default: the class's name, no tokenizer but the user's, no defaults, no limits.

        Args:
            tokenizer: The user's, instead of the backend's own.
        """
        return ModelDescription(type(self).__name__, {"engine": type(self).__qualname__}, tokenizer)

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Say what of these parameters the backend cannot apply; None where it applies all. Default: None."""
        return None

    @property
    def steers_thoughts(self) -> bool:
        """Whether it ends thoughts itself (``thinking_budget``), for which it has to know where the model thinks.

        Default: False, for a backend that hands this on.
        """
        return False

    @property
    def gives_logprobs(self) -> bool:
        """Whether the completion of a request that asks for it (``logprobs``) has its `cumulative_logprob`.

        Default: False.
        """
        return False

    def warnings(self, rows: Sequence[Request], ends: Sequence[ParameterEnds]) -> Sequence[str]:
        """Try what a new study searches on a few rows, and return what its owner should know. Default: nothing.

        Args:
            rows: Search rows.
            ends: The searched parameters.
        """
        return ()

    def repetition(self, rows: Sequence[Request], *, only_alone: bool = False) -> Repetition | None:
        """Ask the same again, to see whether it is answered the same. Default: None, it always is.

        Args:
            rows: Search rows under one configuration.
            only_alone: Ask each row once, alone: for a comparison with an earlier session.
        """
        return None

    @property
    def capacity(self) -> int:
        """How many requests the backend can make use of at the moment; later ones may turn out to be needless.

        Default: 64.
        """
        return CAPACITY

    def expect(self, requests: Iterable[Request]) -> None:  # noqa: B027 - optional
        """Take note of what will be asked for in the long run, before the first request. Default: ignored.

        A search that asks in several ways calls it once for each.
        """

    @property
    def stats(self) -> EngineStats | Mapping[str, Any]:
        """Counters since the backend was made, under the names of `EngineStats`. Default: none."""
        return {}

    def tag_stats(self, tag: Hashable) -> EngineStats | Mapping[str, Any]:
        """Counters of the requests with one tag. Default: none."""
        return {}

    def cost(self, prompt_tokens: float, cached_tokens: float, tokens: float) -> float | None:
        """Return what these tokens cost. Default: None, for a backend that knows no price.

        Args:
            prompt_tokens: Of all prompts.
            cached_tokens: Those of them that were not computed again.
            tokens: Generated.
        """
        return None

    @property
    def cache_budget(self) -> int:
        """Bytes that the backend may keep for later requests. Default: 0."""
        return 0

    @property
    def device_name(self) -> str:
        """The device whose memory batch sizes depend on. Default: empty."""
        return ""

    @property
    def batch_sizes(self) -> Mapping[tuple[int, int], int] | None:
        """(length bucket, beams) -> rows in one pass, where memory was too short for more.

        Default: None, for a backend that learns none; nothing is stored of it then.
        """
        return None

    def start_from(self, batch_sizes: Mapping[tuple[int, int], int]) -> None:  # noqa: B027 - optional
        """Begin with batch sizes that were learned on a device of the same name. Default: ignored."""
