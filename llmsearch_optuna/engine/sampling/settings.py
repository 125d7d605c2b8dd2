"""A configuration as the sampler reads it, taken apart once, and which configurations it cannot apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.after_thinking import is_after_thinking
from llmsearch_optuna.engine.sampling.logits_processors import LogitsProcessor, logits_processors_of
from llmsearch_optuna.engine.sampling.param_specs import PARAM_SPECS
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.xtc import DEFAULT_THRESHOLD

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NARROW = 128
"""Most rows are decided by their first candidates; only the others look at the whole list."""


def needs_full_logits(params: GenerationParams) -> bool:
    """Whether a list of candidates can never prove a token under these parameters."""
    return settings_of(params).needs_full_logits


def supports(params: GenerationParams) -> str | None:
    """Why these parameters cannot be decoded row by row from logits alone; None if they can.

    The reason completes the sentence "runs through model.generate, because …".
    """
    if params.kind == "assisted":
        return "assisted decoding drafts its own tokens"
    for name, reason in _NOT_BY_ROW.items():
        if name in params:
            return reason
    own = [name for name in (*_OWN_TRUNCATIONS, "xtc_probability") if name in params]
    if params.kind == "beam_sampling" and own:
        return f"beam sampling here knows no {', '.join(own)}"
    unknown = sorted(name for name in params if name not in PARAM_SPECS and not is_after_thinking(name))
    return f"{', '.join(unknown)} is new in this version of transformers" if unknown else None


_OWN_TRUNCATIONS = ("top_n_sigma", "tfs", "top_a")

_NOT_BY_ROW = {
    "guidance_scale": "guidance_scale runs the model a second time without the prompt",
    "watermarking_config": "watermarks keep a state of their own",
    "encoder_repetition_penalty": "encoder_repetition_penalty looks at the encoder's input",
    "encoder_no_repeat_ngram_size": "encoder_no_repeat_ngram_size looks at the encoder's input",
    "token_healing": "token_healing changes the prompt",
    "cache_implementation": "a quantized cache changes the logits",
}


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """A configuration, taken apart once. Its parts have the parameters' names; what is off is neutral.

    Attributes:
        sampled: Whether noise is added; otherwise the largest score wins.
        processors: What changes scores before anything else.
        top_h: nan where it is off.
        epsilon, eta: The cutoffs.
        seed: The generation seed.
        needs_full_logits: Whether no list of candidates can ever prove a token.
        width: How many candidates are likely to prove a token.
        has_mirostat: Whether the row's own Mirostat state truncates.
        xtc_probability, xtc_threshold: How often top choices are excluded, and from which probability on.
    """

    sampled: bool
    processors: tuple[LogitsProcessor, ...]
    top_n_sigma: float | None
    tfs: float | None
    top_a: float | None
    temperature: float
    top_h: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    epsilon: float
    eta: float
    seed: int
    needs_full_logits: bool
    width: int
    has_mirostat: bool = False
    xtc_probability: float = 0.0
    xtc_threshold: float = DEFAULT_THRESHOLD

    @property
    def is_argmax(self) -> bool:
        """Whether the largest logit is the token."""
        return not self.sampled and not self.processors

    @property
    def is_truncated(self) -> bool:
        """Whether any token may be excluded after temperature."""
        by_size = self.top_k > 0 or self.top_p < 1.0 or not np.isnan(self.top_h)
        return by_size or self.min_p > 0.0 or self.epsilon > 0.0 or self.has_shape

    @property
    def has_own(self) -> bool:
        """Whether one of our own truncations comes before temperature."""
        return self.top_n_sigma is not None or self.tfs is not None or self.top_a is not None

    @property
    def has_shape(self) -> bool:
        """Whether something beside thresholds is applied, which needs the exact support."""
        return self.typical_p < 1.0 or self.eta > 0.0


class HasParams(Protocol):
    """A row under some parameters."""

    @property
    def params(self) -> GenerationParams: ...


def settings_of_rows(rows: Sequence[HasParams]) -> list[SamplingSettings]:
    """Take the configurations of many rows apart; those that are one object are looked up once."""
    known: dict[int, SamplingSettings] = {}
    found = []
    for row in rows:
        params = row.params
        settings = known.get(id(params))
        if settings is None:
            settings = known[id(params)] = settings_of(params)
        found.append(settings)
    return found


@lru_cache(maxsize=4096)
def settings_of(params: GenerationParams) -> SamplingSettings:
    """Take a configuration apart; the answer is kept."""

    def value(name: str, neutral: float) -> float:
        return float(params.get(name, neutral))

    sampled = bool(params.get("do_sample"))
    top_k, top_p = int(params.get("top_k", 0)), value("top_p", 1.0)
    has_shape = value("typical_p", 1.0) < 1.0 or value("eta_cutoff", 0.0) > 0.0
    bounded = top_k > 0 or top_p < 1.0 or "top_h" in params or "min_p" in params
    return SamplingSettings(
        sampled=sampled,
        processors=logits_processors_of(params),
        top_n_sigma=params.get("top_n_sigma"),
        tfs=params.get("tfs"),
        top_a=params.get("top_a"),
        temperature=value("temperature", 1.0),
        top_h=value("top_h", np.nan),
        top_k=top_k,
        top_p=top_p,
        min_p=value("min_p", 0.0),
        typical_p=value("typical_p", 1.0),
        epsilon=value("epsilon_cutoff", 0.0),
        eta=value("eta_cutoff", 0.0),
        seed=params.generation_seed,
        needs_full_logits=(
            any(name in params for name in (*_OWN_TRUNCATIONS, "mirostat_mode", "xtc_probability"))
            or params.get("repetition_penalty", 1.0) < 1.0
            or "remove_invalid_values" in params
            or (sampled and has_shape and not bounded)
        ),
        has_mirostat="mirostat_mode" in params,
        xtc_probability=value("xtc_probability", 0.0),
        xtc_threshold=value("xtc_threshold", DEFAULT_THRESHOLD),
        width=top_k + 1 if sampled and bounded else (NARROW if not sampled else NARROW + 1),
    )
