"""Every generation parameter that a server may take, with two ends between which any server that applies it differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.types import Chat

WARM = {"max_new_tokens": 24, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
GREEDY = {"max_new_tokens": 24, "do_sample": False}

ENDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "temperature": (0.1, 1.5, WARM),
    "top_p": (0.1, 1.0, WARM),
    "top_k": (1, 0, WARM),
    "min_p": (0.0, 0.9, WARM),
    "typical_p": (0.1, 1.0, WARM),
    "top_n_sigma": (0.1, 5.0, WARM),
    "epsilon_cutoff": (0.0, 0.3, WARM),
    "eta_cutoff": (0.0, 0.9, WARM),
    "repetition_penalty": (1.0, 1.8, WARM),
    "repeat_last_n": (1, 256, {**WARM, "repetition_penalty": 1.8}),
    "presence_penalty": (-2.0, 2.0, WARM),
    "frequency_penalty": (-2.0, 2.0, WARM),
    "no_repeat_ngram_size": (0, 1, WARM),
    "dry_multiplier": (0.0, 5.0, {**WARM, "dry_allowed_length": 0}),
    "dry_allowed_length": (0, 20, {**WARM, "dry_multiplier": 5.0}),
    "xtc_probability": (0.0, 1.0, {**WARM, "xtc_threshold": 0.05}),
    "xtc_threshold": (0.01, 0.49, {**WARM, "xtc_probability": 1.0}),
    "mirostat_mode": (0, 2, WARM),
    "mirostat_tau": (0.5, 9.0, {**WARM, "mirostat_mode": 2}),
    "mirostat_eta": (0.01, 1.0, {**WARM, "mirostat_mode": 2, "mirostat_tau": 1.0}),
    "num_beams": (1, 4, GREEDY),
    "length_penalty": (-9.0, 9.0, {**GREEDY, "num_beams": 4}),
    "min_new_tokens": (1, 12, {**WARM, "sequence_bias": [[[2], 90.0]]}),
    "max_new_tokens": (3, 24, WARM),
    "stop": (["e"], ["zzz"], WARM),
    "stop_token_sequences": ([[28]], [[253]], {**WARM, "sequence_bias": [[[28], 90.0]]}),
    "sequence_bias": ([[[28], -90.0]], [[[253], 90.0]], WARM),
    "response_format": ({"type": "text"}, {"type": "json_object"}, WARM),
}


def ends_of(name: str, defaults: Mapping[str, Any]) -> ParameterEnds:
    """Both ends of a parameter; the others stay as they are."""
    low, high, beside = ENDS[name]
    return ParameterEnds(name, *(GenerationParams.of(beside | {name: end}, defaults) for end in (low, high)))


def questions(defaults: Mapping[str, Any], count: int = 3) -> list[Request]:
    """A few questions as messages, sampled; one of them has a short answer."""
    params = GenerationParams.of(WARM, defaults)
    texts = ["Tell me about Oslo.", "Say hello.", "Tell me about the number 7."][:count]
    return [
        Request("t", row, text, params, chat=Chat(({"role": "user", "content": text},)))
        for row, text in enumerate(texts)
    ]
