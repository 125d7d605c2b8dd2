"""Rows, logits and parameters that the tests of sampling share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.params import GenerationParams

VOCABULARY = 300


LIMIT = 12


@dataclass
class Row:
    params: GenerationParams
    context: list[int] = field(default_factory=lambda: [3, 4, 5])
    prompt_length: int = 3
    row_key: int = 17
    step: int = 0


def make_params(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": LIMIT, "eos_token_id": [1, 7], **values})


def make_candidates(logits: np.ndarray, size: int) -> Candidates:
    """As an engine makes them: torch's topk, and a total that was summed up in float32."""
    top = torch.topk(torch.from_numpy(logits), size, dim=-1)
    total = torch.logsumexp(torch.from_numpy(logits), dim=-1).double().numpy()
    return Candidates(top.values.numpy(), top.indices.to(torch.int32).numpy(), total, logits.shape[1])


def make_logits(kind: str, seed: int, rows: int = 1, vocabulary: int = VOCABULARY) -> np.ndarray:
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(rows, vocabulary))
    if kind == "flat":
        logits = np.full((rows, vocabulary), float(normal[0, 0]))
    elif kind == "peaked":
        logits = normal * 12
    elif kind == "tied":
        logits = np.round(normal * 2) / 2
    elif kind == "half":
        logits = torch.from_numpy(normal * 4).bfloat16().double().numpy()
    else:  # as a language model's: a few large ones and a long tail
        logits = normal * 1.5 + 8 * generator.exponential(size=(rows, vocabulary)) ** 0.5
    return logits.astype(np.float32)


KINDS = ["normal", "flat", "peaked", "tied", "half"]


fractions = st.floats(0.02, 0.98).map(lambda x: round(x, 3))


warping = st.fixed_dictionaries(
    {"do_sample": st.just(True)},
    optional={
        "temperature": st.sampled_from([0.1, 0.5, 0.9, 1.3, 2.5]),
        "top_k": st.sampled_from([0, 0, 1, 2, 10, 50, 250]),
        "top_p": fractions,
        "min_p": fractions.map(lambda x: x / 4),
        "top_h": fractions,
        "typical_p": fractions,
        "epsilon_cutoff": fractions.map(lambda x: x / 50),
        "eta_cutoff": fractions.map(lambda x: x / 50),
        "generation_seed": st.integers(0, 5),
    },
)


tokens = st.integers(0, 30)


sequences = st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=4)


ruling = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.05, 1.3, 3.0]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "min_new_tokens": st.integers(1, 12),
        "min_length": st.integers(1, 12),
        "bad_words_ids": sequences.map(lambda words: [*words, [2]]),
        "sequence_bias": sequences.map(lambda keys: [[key, (-1) ** sum(key) * 2.5] for key in keys]),
        "suppress_tokens": st.lists(tokens.filter(lambda t: t not in (1, 5)), min_size=1, max_size=4),
        "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=4),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.sampled_from([0.5, 1.1, 2.0])),
        "forced_eos_token_id": st.sampled_from([1, [1, 9]]),
        "forced_bos_token_id": st.just(5),
        "remove_invalid_values": st.just(True),
        "presence_penalty": st.sampled_from([-1.0, 0.5, 2.0]),
        "frequency_penalty": st.sampled_from([-0.4, 0.3, 1.7]),
        "dry_multiplier": st.sampled_from([0.4, 3.0]),
        "dry_allowed_length": st.integers(0, 3),
    },
)


own_warping = st.fixed_dictionaries(
    {}, optional={"tfs": fractions, "top_a": fractions, "top_n_sigma": st.sampled_from([0.5, 1.0, 3.0])}
)


@st.composite
def contexts(draw: st.DrawFn) -> dict[str, Any]:
    prompt = draw(st.lists(tokens, min_size=1, max_size=6))
    generated = draw(st.lists(tokens, max_size=LIMIT - 1))
    return {
        "context": prompt + generated,
        "prompt_length": len(prompt),
        "step": len(generated),
        "row_key": row_key(prompt),
    }
