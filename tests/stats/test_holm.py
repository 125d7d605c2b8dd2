"""Holm's method against its definition, and the chance of any wrong claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.stats.holm import against_all, holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def rejected_step_by_step(p_values: list[float], alpha: float) -> set[int]:
    """The smallest first, each at alpha over those that are left; stop at the first that stays."""
    found: set[int] = set()
    for place in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if p_values[place] * (len(p_values) - len(found)) > alpha:
            return found
        found.add(place)
    return found


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_what_is_rejected_is_what_the_steps_reject(p_values: list[float], alpha: float) -> None:
    adjusted = holm(p_values)
    assert {place for place, p in enumerate(adjusted) if p <= alpha} == rejected_step_by_step(p_values, alpha)
    assert all(p >= raw for p, raw in zip(adjusted, p_values, strict=True))


def test_the_chance_of_any_wrong_claim_is_kept() -> None:
    p_values = np.random.default_rng(0).random((4000, 4))
    assert np.mean([min(holm(list(p))) <= 0.05 for p in p_values]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)
    assert np.mean(p_values.min(axis=1) <= 0.05) > 0.15


@pytest.mark.parametrize(
    ("direction", "answers"), [("maximize", ["better", "worse"]), ("minimize", ["worse", "better"])]
)
def test_answers_follow_the_direction(direction, answers) -> None:
    found = against_all({"a": (0, 0.2, 0.001), "b": (2, -0.1, 0.002), "c": (3, 0.1, 0.06)}, direction=direction)
    assert [b.answer for b in found] == [*answers, "no evidence"]
