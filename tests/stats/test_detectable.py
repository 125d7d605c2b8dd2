"""Detectable differences against enumeration, and against the power of the real tests in simulated looks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.detectable import detectable_gain, detectable_share, room_above
from llmsearch_optuna.stats.verdict import Verdict
from tests.benchmarks.claimed_power import Scores, power_of_claims

Floats = NDArray[np.float64]


def _mcnemar_power(rows: int, won: float, lost: float) -> float:
    """Chance of a significant result for the winner, over all counts of wins and losses."""
    power = 0.0
    for wins, losses in itertools.product(range(rows + 1), repeat=2):
        if wins + losses <= rows and wins > losses and stats.binomtest(losses, wins + losses, 0.5).pvalue <= 0.05:
            power += stats.multinomial.pmf([wins, losses, rows - wins - losses], rows, [won, lost, 1 - won - lost])
    return power


@pytest.mark.parametrize("rows", [12, 18, 30])
def test_a_share_that_is_found_has_the_power_that_enumeration_gives(rows: int) -> None:
    """Without rows on which the two differ every gain is a win, so the power is that of wins alone."""
    gain = detectable_share(1e-9, 0.1, units=rows, room=1.0)
    assert gain is not None
    assert _mcnemar_power(rows, gain, 0.0) == pytest.approx(0.8, abs=1e-3)
    discordant, right = 0.2, 0.4
    gain = detectable_share(discordant, right, units=rows, room=1.0)
    assert gain is not None
    lost = 0.25 * discordant * (1 - gain / (1 - right)) + 0.25 * max(0.0, discordant - gain)
    assert _mcnemar_power(rows, lost + gain, lost) == pytest.approx(0.8, abs=1e-3)


def test_one_win_in_eighteen_rows_is_far_from_what_could_be_found() -> None:
    """The normal formula promised 0.17 here, which McNemar's test finds in 6 of 100 looks."""
    verdict = compare(np.zeros(18), np.r_[1.0, np.zeros(17)], bounds=(0, 1))
    assert verdict.detectable is not None
    assert verdict.detectable > 0.35
    assert _mcnemar_power(18, 0.17, 0.0) < 0.15


@pytest.mark.parametrize(("right", "rows"), [(0.0, 5), (0.5, 6), (0.9, 12)])
def test_where_rows_or_room_are_missing_nothing_is_promised(right: float, rows: int) -> None:
    assert detectable_share(0.1, max(right, 0.05), units=rows, room=room_above(right, rows)) is None
    assert compare(np.zeros(5), np.ones(5), bounds=(0, 1)).detectable is None
    assert detectable_gain(np.zeros(3), np.ones(3), units=5, worst=0.0) is None


def _look(rng: np.random.Generator, shape: str, rows: int, gain: float) -> tuple[Floats, Floats, tuple[float, float]]:
    """Scores of two settings on the same rows: rows differ, settings suit rows differently."""
    inner = 1.2 * rng.normal(size=rows)
    first, second = inner + rng.normal(size=rows), inner + rng.normal(size=rows)
    if shape == "continuous":
        return 0.4 + 0.08 * first, 0.4 + 0.08 * second + gain, (0.0, 1.0)
    spread, threshold = math.hypot(1.2, 1.0), 0.6
    moved = spread * (stats.norm.isf(stats.norm.sf(threshold / spread) + gain) - threshold / spread)
    return (first > threshold).astype(float), (second > threshold + moved).astype(float), (0.0, 1.0)


def _compared(rng: np.random.Generator, shape: str, rows: int, gain: float) -> Verdict:
    first, second, bounds = _look(rng, shape, rows, gain)
    return compare(first, second, bounds=bounds)


@pytest.mark.parametrize(("shape", "rows"), [("continuous", 8), ("continuous", 40), ("0/1", 20), ("0/1", 60)])
def test_what_a_look_says_it_finds_is_found_in_four_of_five_looks(shape: str, rows: int) -> None:
    rng = np.random.default_rng(3)
    claims = [_compared(rng, shape, rows, 0.0).detectable for _ in range(20)]
    usable = [claim for claim in claims if claim is not None and claim < 0.65]
    assert len(usable) >= 10
    found = [_compared(rng, shape, rows, claim).answer == "better" for claim in usable for _ in range(10)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(
    ("scores", "rows"),
    [("skewed", 6), ("skewed", 12), ("skewed", 30), ("continuous", 12), ("5 % right", 60), ("40 % right", 30)],
)
def test_claims_hold_for_skewed_and_rare_scores(scores: Scores, rows: int) -> None:
    found = power_of_claims(scores, rows, looks=150, samples=1000)
    assert found is not None
    assert 0.75 - 2 * found.error < found.power < 0.85 + 2 * found.error


def test_beyond_the_rows_that_are_simulated_claims_go_on_without_a_step() -> None:
    """The normal formula promised 0.039 to 310 rows with 5 % right, found in 59 of 100 looks."""
    rng = np.random.default_rng(5)
    first, second = rng.random(100), rng.random(100)
    gains = [detectable_gain(first, second, units=units, worst=0.0) or 0.0 for units in (300, 1200)]
    assert gains[1] == pytest.approx(gains[0] / 2)
    shares = [detectable_share(0.06, 0.05, units=units, room=0.9) or 0.0 for units in (300, 310, 3000, 12000)]
    assert 0.9 * shares[0] < shares[1] <= shares[0]
    assert shares[3] == pytest.approx(shares[2] / 2, rel=1e-3)
