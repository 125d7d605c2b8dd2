"""The levels of several looks, against simulation, published values and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.stats.alpha_spending import LEAST_SHARE, levels, repeated_p_value, spent

QUARTERS = (0.25, 0.5, 0.75, 1.0)


def test_one_look_uses_everything() -> None:
    assert levels((1.0,), 0.05) == pytest.approx((0.05,), rel=1e-6)


def test_two_and_three_looks_have_the_published_limits() -> None:
    """Of O'Brien and Fleming's type: 2.963 and 1.969, as in Jennison and Turnbull 2000, table 7.1, and gsDesign."""
    limits = stats.norm.isf(np.array(levels((0.5, 1.0), 0.05)) / 2)
    assert limits == pytest.approx([2.963, 1.969], abs=0.002)
    limits = stats.norm.isf(np.array(levels((0.6, 0.8, 1.0), 0.05)) / 2)
    assert limits == pytest.approx([2.669, 2.289, 2.031], abs=0.003)


def test_all_looks_together_reject_as_many_nulls_as_said() -> None:
    rng = np.random.default_rng(0)
    sums = np.cumsum(rng.normal(size=(400_000, 4)), axis=1) / 2
    scores = sums / np.sqrt(QUARTERS)
    limits = stats.norm.isf(np.array(levels(QUARTERS, 0.05)) / 2)
    assert np.mean(np.any(np.abs(scores) >= limits, axis=1)) == pytest.approx(0.05, abs=0.0012)


@given(
    fractions=st.lists(st.floats(0.02, 0.98), min_size=0, max_size=5, unique=True).map(lambda f: (*sorted(f), 1.0)),
    alpha=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_levels_lie_between_their_share_and_the_whole(fractions: tuple[float, ...], alpha: float) -> None:
    gaps = np.diff((0.0, *fractions))
    if gaps.min() < 0.01:
        return
    found = levels(fractions, alpha)
    assert all(LEAST_SHARE * alpha * 0.999 <= level <= alpha * 1.0001 for level in found)
    assert sum(found) >= alpha * 0.999, "no look's level is below what it spends"


def test_spending_rises_to_all() -> None:
    values = [spent(t, 0.05) for t in np.linspace(0.05, 1, 40)]
    assert values == sorted(values)
    assert values[-1] == 0.05


@pytest.mark.parametrize("look", range(4))
def test_a_repeated_p_value_is_at_alpha_where_the_look_is_at_its_level(look: int) -> None:
    for alpha in (0.01, 0.05, 0.3):
        level = levels(QUARTERS[: look + 1], alpha)[-1]
        assert repeated_p_value(level, QUARTERS, look) == pytest.approx(alpha, rel=0.01)


@given(p=st.floats(1e-4, 1.0), look=st.integers(0, 3))
def test_a_repeated_p_value_is_never_below_the_looks_own(p: float, look: int) -> None:
    found = repeated_p_value(p, QUARTERS, look)
    assert p <= found <= 1
    assert (found <= 0.05) == (p <= levels(QUARTERS[: look + 1], 0.05)[-1]) or abs(found - 0.05) < 1e-3


def test_fractions_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        levels((0.5, 0.5, 1.0), 0.05)
