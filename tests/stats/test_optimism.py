"""How much a search flattered: a difference of two leads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llmsearch_optuna.stats.optimism import optimism


def test_optimism_is_a_difference_of_two_leads_with_welchs_interval() -> None:
    rng = np.random.default_rng(14)
    searched, held_out = rng.normal(0.06, 0.1, 42), rng.normal(0.01, 0.2, 18)
    gap = optimism(searched, held_out)
    assert gap is not None
    assert gap.gap == pytest.approx(searched.mean() - held_out.mean())
    welch = stats.ttest_ind(searched, held_out, equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((welch.low, welch.high))
    assert optimism(searched, held_out[:1]) is None


def test_hard_or_easy_rows_are_no_optimism() -> None:
    """Means of different rows differ by chance; the lead over the baseline on them does not."""
    rng, outside, runs = np.random.default_rng(15), 0, 300
    for _ in range(runs):
        leads = []
        for rows in (42, 18):
            difficulty = rng.normal(0.3, 0.15, rows)
            baseline, winner = (difficulty + 0.05 * rng.normal(size=rows) for _ in range(2))
            leads.append(winner - baseline)
        gap = optimism(*leads)
        outside += gap is not None and not gap.low <= 0 <= gap.high
    assert outside / runs == pytest.approx(0.05, abs=0.03)
