"""Each truncation alone keeps what Hugging Face's class keeps; from a part of the scores it never claims too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from llmsearch_optuna.engine.sampling.draw import in_order
from llmsearch_optuna.engine.sampling.hf_processors import TailFreeLogitsWarper, TopALogitsWarper, TopNSigmaLogitsWarper
from llmsearch_optuna.engine.sampling.truncation import Support, kept_by_own, kept_by_shape

VOCABULARY = 250
THEIRS: dict[str, Callable[[Any], hf.LogitsProcessor]] = {
    "top_h": lambda value: hf.TopHLogitsWarper(value),
    "top_k": lambda value: hf.TopKLogitsWarper(value),
    "top_p": lambda value: hf.TopPLogitsWarper(value),
    "min_p": lambda value: hf.MinPLogitsWarper(value),
    "epsilon": lambda value: hf.EpsilonLogitsWarper(value),
    "typical": lambda value: hf.TypicalLogitsWarper(value),
    "eta": lambda value: hf.EtaLogitsWarper(value),
}
LIMIT = {
    "top_h": "top_h",
    "top_p": "top_p",
    "min_p": "min_p",
    "epsilon": "epsilon",
    "typical": "mass",
    "eta": "epsilon",
}
SHAPES = {"typical": (1, 0, 0), "eta": (2, 0, 1)}
SCORES = {
    "normal": lambda generator: generator.normal(size=VOCABULARY) * 3,
    "flat": lambda generator: np.zeros(VOCABULARY),
    "peaked": lambda generator: generator.normal(size=VOCABULARY) * 15,
    "tied": lambda generator: np.round(generator.normal(size=VOCABULARY) * 2),
    "one sided": lambda generator: np.where(np.arange(VOCABULARY) < 3, 5.0, -np.inf),
}

values = st.floats(0.001, 0.999).map(lambda x: round(x, 4))


def make_scores(kind: str, seed: int) -> np.ndarray:
    return SCORES[kind](np.random.default_rng(seed)).astype(np.float32)


def their_set(name: str, value: Any, scores: np.ndarray) -> set[int] | None:
    """The tokens that Hugging Face keeps; None where a limit moved by 2e-6 would change that."""
    exact = torch.from_numpy(scores).double()[None]
    kept = []
    for shift in (1.0, 1 - 2e-6, 1 + 2e-6):
        processor = THEIRS[name](value)
        if name in LIMIT:
            setattr(processor, LIMIT[name], getattr(processor, LIMIT[name]) * shift)
        kept.append(set(torch.isfinite(processor(None, exact)[0]).nonzero()[:, 0].tolist()))
    return kept[0] if kept[0] == kept[1] == kept[2] else None


def splits_equals(kept: set[int], scores: np.ndarray) -> bool:
    """Whether some of several equal scores are kept; which of them is chance, since torch's sort is not stable."""
    dropped = {scores[token] for token in range(len(scores)) if token not in kept}
    return bool({scores[token] for token in kept} & dropped)


def support_of(scores: np.ndarray, size: int) -> tuple[Support, np.ndarray]:
    """What is known from the ``size`` largest scores and the exact mass of the others; and the ids of the former."""
    order = np.argsort(-scores, kind="stable")
    listed, others = scores[order[:size]], scores[order[size:]].astype(np.float64)
    ordered, ids = in_order(listed[None].copy(), order[:size][None].copy())
    bound = tail = np.array([-np.inf])
    if len(others) and np.isfinite(others[0]):
        bound = others[:1]
        tail = bound + np.log(np.exp(others - bound).sum())
    return Support(ordered.astype(np.float64), bound, tail, tail, len(scores)), ids[0]


def apply(support: Support, name: str, value: Any) -> None:
    getattr(support, name)(np.array([value]))


@pytest.mark.parametrize("name", ["top_h", "top_p", "min_p", "epsilon"])
@given(kind=st.sampled_from(list(SCORES)), seed=st.integers(0, 50), value=values, size=st.integers(1, VOCABULARY))
def test_thresholds(name: str, kind: str, seed: int, value: float, size: int) -> None:
    check(name, value if name in ("top_h", "top_p") else value / 20, make_scores(kind, seed), size)


@given(
    kind=st.sampled_from(list(SCORES)),
    seed=st.integers(0, 50),
    k=st.integers(1, VOCABULARY + 5),
    size=st.integers(1, VOCABULARY),
)
def test_top_k(kind: str, seed: int, k: int, size: int) -> None:
    check("top_k", k, make_scores(kind, seed), size)


def check(name: str, value: Any, scores: np.ndarray, size: int) -> None:
    expected = their_set(name, value, scores)
    if expected is None:
        return
    expected = {token for token in expected if np.isfinite(scores[token])}
    whole, ids = support_of(scores, VOCABULARY)
    apply(whole, name, value)
    assert whole.is_exact(0)
    assert sorted(scores[ids[: whole.most[0]]]) == sorted(scores[list(expected)])
    if splits_equals(expected, scores):
        return
    assert set(ids[: whole.most[0]].tolist()) == expected

    part, ids = support_of(scores, size)
    apply(part, name, value)
    assert set(ids[: part.sure[0]].tolist()) <= expected
    assert expected & set(ids.tolist()) <= set(ids[: part.most[0]].tolist())
    if not part.open[0]:
        assert expected <= set(ids.tolist())


@pytest.mark.parametrize("name", ["typical", "eta"])
@given(kind=st.sampled_from(list(SCORES)), seed=st.integers(0, 50), value=values)
def test_shapes(name: str, kind: str, seed: int, value: float) -> None:
    scores = make_scores(kind, seed)
    value = value if name == "typical" else value / 20
    expected = their_set(name, value, scores)
    if expected is None:
        return
    possible = np.flatnonzero(np.isfinite(scores))
    typical, epsilon, eta = (value, 0.0, 0.0) if name == "typical" else (1.0, 0.0, value)
    kept = kept_by_shape(scores[possible].astype(np.float64), typical, epsilon, eta)
    likely = scores > scores.max() - 80  # far below, float32 and float64 differ, and nothing is ever drawn
    assert {t for t in possible[kept].tolist() if likely[t]} == {t for t in expected if likely[t]}


@given(kind=st.sampled_from(list(SCORES)), seed=st.integers(0, 50), value=values, sigma=st.floats(0.05, 5))
def test_own_truncations_equal_their_processors(kind: str, seed: int, value: float, sigma: float) -> None:
    scores = make_scores(kind, seed)
    for processor, arguments in (
        (deviations := TopNSigmaLogitsWarper(sigma), (deviations.top_n_sigma, None, None)),
        (TailFreeLogitsWarper(value), (None, value, None)),
        (TopALogitsWarper(value), (None, None, value)),
    ):
        expected = processor(None, torch.from_numpy(scores)[None])[0].numpy()
        np.testing.assert_array_equal(kept_by_own(scores, *arguments), expected)
