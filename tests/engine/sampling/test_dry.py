"""DRY by a plain loop over llama.cpp's definition."""

from __future__ import annotations

import doctest
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.engine.sampling import dry, penalties, xtc
from llmsearch_optuna.engine.sampling.dry import Dry, breakers_of
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.xtc import XTCLogitsWarper, without_top_choices
from llmsearch_optuna.errors import InputError


@pytest.mark.parametrize("module", [dry, penalties, xtc])
def test_worked_examples(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch, "np": np})  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


def dry_by_hand(
    context: Sequence[int], params: Mapping[str, Any], breakers: Mapping[int, Sequence[tuple[int, ...]]]
) -> dict[int, float]:
    """``llama_sampler_dry_apply`` step by step, with suffixes compared one token at a time."""
    multiplier, base = params["dry_multiplier"], params.get("dry_base", 1.75)
    allowed, last_n = params.get("dry_allowed_length", 2), params.get("dry_penalty_last_n", -1)
    size = len(context) if last_n == -1 else min(len(context), last_n)
    if size <= allowed:
        return {}

    def rat(i: int) -> int:
        return context[len(context) - 1 - i]

    limit = size
    for i in range(size):
        longest = -1
        for tail in breakers.get(rat(i), ()):
            fits = longest < len(tail) <= i
            if fits and all(tail[offset] == rat(i - offset - 1) for offset in range(len(tail))):
                longest = len(tail)
        if longest >= 0:
            limit = i - longest
            break
    if limit < allowed:
        return {}
    repeats: dict[int, int] = {}
    for k in range(1, size):
        n = 0
        while n + k < size and rat(n) == rat(n + k):
            n += 1
        n = min(n, limit)
        if n >= allowed:
            repeats[rat(k - 1)] = max(n, repeats.get(rat(k - 1), 0))
    most = int(88.7228391 / np.log(base)) if base > 1.000001 else 0
    return {
        token: multiplier * base ** (min(n - allowed, most) if most > 0 else n - allowed)
        for token, n in repeats.items()
        if () not in breakers.get(token, ())
    }


@given(
    context=st.lists(st.integers(0, 3), max_size=40),
    allowed=st.integers(0, 4),
    base=st.sampled_from([1.0, 1.3, 1.75, 1e30]),
    last_n=st.integers(-1, 30),
    breakers=st.dictionaries(
        st.integers(0, 3), st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=2)
    ),
)
def test_against_a_plain_loop(
    context: list[int], allowed: int, base: float, last_n: int, breakers: dict[int, list[tuple[int, ...]]]
) -> None:
    params = {"dry_multiplier": 0.5, "dry_base": base, "dry_allowed_length": allowed, "dry_penalty_last_n": last_n}
    found = Dry(0.5, base, allowed, last_n).penalties(context, breakers)
    wanted = {} if last_n == 0 else dry_by_hand(context, params, breakers)
    assert found == {token: np.float32(penalty) for token, penalty in wanted.items()}


def test_a_breaker_is_a_token_that_has_it_or_that_begins_it(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    found = breakers_of({"dry_multiplier": 1.0, "dry_sequence_breakers": ["ou"]}, tiny_tokenizer)
    for token in range(len(tiny_tokenizer)):
        word = tiny_tokenizer.decode([token])
        assert (() in found.get(token, [])) == ("ou" in word)
        begun = word.endswith("o") and "ou" not in word
        assert (tuple(tiny_tokenizer.encode("u", add_special_tokens=False)) in found.get(token, [])) == begun
    assert breakers_of({}, tiny_tokenizer) == {}


@given(seed=st.integers(0, 999), threshold=st.floats(0.001, 0.5), tied=st.booleans())
def test_top_choices_are_excluded_alike_in_both(seed: int, threshold: float, tied: bool) -> None:
    scores = (np.random.default_rng(seed).normal(size=30) * 3).astype(np.float32)
    scores = np.round(scores) if tied else scores
    p = torch.from_numpy(scores).double().softmax(-1).numpy()
    if (abs(p - threshold) < 1e-9).any():
        return
    found = without_top_choices(scores, threshold)
    warped = XTCLogitsWarper(1.0, threshold)(torch.tensor([[4]]), torch.from_numpy(scores)[None])[0].numpy()
    assert np.array_equal(found, warped)
    likely = p >= threshold
    assert (np.isfinite(found) & likely).sum() == min(1, likely.sum())
    assert np.array_equal(found[~likely], scores[~likely])


@pytest.mark.parametrize(
    ("given_values", "canonical"),
    [
        ({"presence_penalty": 0.0, "frequency_penalty": 0, "dry_multiplier": 0}, {}),
        ({"dry_base": 2.0, "dry_sequence_breakers": ["a"]}, {}),
        ({"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2}, {"dry_multiplier": 0.8}),
        ({"dry_multiplier": 0.8, "dry_penalty_last_n": 0}, {}),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": ["*", ":", '"', "\n"]}, {"dry_multiplier": 0.8}),
        ({"xtc_probability": 0.5}, {}),  # greedy
        ({"min_tokens": 3, "eos_token_id": 1}, {"min_new_tokens": 3, "eos_token_id": [1]}),
    ],
)
def test_what_has_no_effect_is_left_out(given_values: dict[str, Any], canonical: dict[str, Any]) -> None:
    assert dict(GenerationParams.of({"max_new_tokens": 8, **given_values})) == {"max_new_tokens": 8, **canonical}


@pytest.mark.parametrize("more", [{"xtc_threshold": 0.6, "xtc_probability": 0.5}, {"xtc_probability": 0.0}])
def test_xtc_without_effect(more: dict[str, Any]) -> None:
    sampled = {"max_new_tokens": 8, "do_sample": True}
    assert GenerationParams.of({**sampled, **more}) == GenerationParams.of(sampled)


def test_min_tokens_and_stops_are_not_what_min_new_tokens_is() -> None:
    with pytest.raises(InputError, match="min_tokens holds back stop strings"):
        GenerationParams.of({"max_new_tokens": 8, "min_tokens": 2, "eos_token_id": 1, "stop": "x"})
    with pytest.raises(InputError, match="two names of one parameter"):
        GenerationParams.of({"max_new_tokens": 8, "min_tokens": 2, "min_new_tokens": 3, "eos_token_id": 1})
