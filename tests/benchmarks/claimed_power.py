"""The power of the verdict's tests at the differences that looks claim to find, without making thousands of verdicts.

Looks make their claims; the power at each claim is read off the curve of power against the true gain, which is
simulated once for all of them, with the tests written for all samples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.tail_bound import mean_lower_bounds
from tests.benchmarks.worlds import CHANCE, ROW, SCALE, TOGETHER, TOTAL

Floats = NDArray[np.float64]
Scores = Literal["continuous", "5 % right", "40 % right", "skewed"]

ROWS = (6, 8, 12, 18, 30, 60, 100, 200)
_RIGHT: dict[str, float] = {"5 % right": 0.05, "40 % right": 0.4}
_POINTS, _FLIPS, _MOST_ENUMERATED = 12, 1999, 11


@dataclass(frozen=True)
class ClaimedPower:
    """How often claims hold.

    Attributes:
        power: The mean power at the claimed differences.
        error: Its standard error.
        telling: The share of looks that claim anything.
    """

    power: float
    error: float
    telling: float


def claimed_power(pool: Executor, share: float) -> str:
    """What a look says it finds in 4 of 5 cases: how often is it found?"""
    looks, samples = max(40, round(300 * share)), max(400, round(3000 * share))
    names: tuple[Scores, ...] = ("continuous", "5 % right", "40 % right", "skewed")
    tasks = [(scores, rows, looks, samples) for scores in names for rows in ROWS]
    found = dict(zip([task[:2] for task in tasks], pool.map(power_of_claims, *zip(*tasks, strict=True)), strict=True))
    lines = [f"| {scores} | " + " | ".join(_cell(found[scores, rows]) for rows in ROWS) + " |" for scores in names]
    return "\n".join(
        [
            f"### What a look says it finds in 80 % of cases ({looks} looks a cell, ± one standard error)\n",
            "The power of the verdict's test at the claimed difference, one replicate; in brackets the share of looks "
            f"that claim nothing, since so few rows find no difference so often. Each power is counted in {samples} "
            "looks.\n",
            "| scores | 6 rows | " + " | ".join(map(str, ROWS[1:])) + " |",
            "|---|" + "---|" * len(ROWS),
            *lines,
        ]
    )


def power_of_claims(scores: Scores, rows: int, looks: int, samples: int, seed: int = 0) -> ClaimedPower | None:
    """Return how often the claimed differences are found; None where fewer than 5 looks claim one."""
    claims = _claims(scores, rows, looks, np.random.default_rng([seed, 1]))
    if len(claims) < 5:
        return None
    if scores in _RIGHT:
        claims = np.minimum(claims, 0.999 - _RIGHT[scores])
    gains = np.unique(np.quantile(claims, np.linspace(0, 1, _POINTS)))
    powers = np.interp(claims, gains, _power(scores, rows, gains, samples, np.random.default_rng([seed, 2])))
    error = float(powers.std() / np.sqrt(len(powers)) + np.sqrt(0.8 * 0.2 / samples))
    return ClaimedPower(float(powers.mean()), error, len(claims) / looks)


def _claims(scores: Scores, rows: int, looks: int, rng: np.random.Generator) -> Floats:
    first, second = (_scores(scores, z) for z in _draw(looks, rows, rng))
    bounds = (0.0, 1.0) if scores in _RIGHT else None
    told = [compare(a, b, bounds=bounds).detectable for a, b in zip(first, second, strict=True)]
    return np.array([claim for claim in told if claim is not None])


def _power(scores: Scores, rows: int, gains: Floats, samples: int, rng: np.random.Generator) -> Floats:
    luck, other = _draw(samples, rows, rng)
    baseline, subsets = _scores(scores, luck), _subsets(rows, rng)
    found = [_is_better(baseline, _scores(scores, other + _inner(scores, g)), scores, subsets).mean() for g in gains]
    return np.array(found)


def _is_better(baseline: Floats, best: Floats, scores: Scores, subsets: Floats) -> NDArray[np.bool_]:
    """The verdict's test of each sample, [samples]."""
    differences = best - baseline
    if scores in _RIGHT:
        wins, losses = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
        return np.asarray((wins > losses) & (2 * stats.binom.cdf(losses, wins + losses, 0.5) <= 0.05))
    extreme = 1 + (differences @ subsets <= 1e-12).sum(axis=1)
    loss = baseline.mean(axis=1) - np.minimum(baseline.min(axis=1), best.min(axis=1))
    above = mean_lower_bounds(differences, largest_loss=loss, level=0.05) > 0
    return np.asarray((2 * extreme <= 0.05 * (subsets.shape[1] + 1)) & above)


def _subsets(rows: int, rng: np.random.Generator) -> Floats:
    if rows <= _MOST_ENUMERATED:
        return ((np.arange(1, 2**rows) >> np.arange(rows)[:, None]) & 1).astype(np.float64)
    return rng.integers(0, 2, (rows, _FLIPS)).astype(np.float64)


def _draw(samples: int, rows: int, rng: np.random.Generator) -> Sequence[Floats]:
    """Two settings on the inner scale, [samples, rows] each."""
    shared = ROW * rng.normal(size=(samples, rows))
    return [shared + float(np.hypot(TOGETHER, CHANCE)) * rng.normal(size=(samples, rows)) for _ in range(2)]


def _scores(scores: Scores, z: Floats) -> Floats:
    if scores in _RIGHT:
        return (z > TOTAL * stats.norm.isf(_RIGHT[scores])).astype(np.float64)
    return 0.3 + SCALE * z if scores == "continuous" else np.exp(0.7 * z) / 10


def _inner(scores: Scores, gain: float) -> float:
    """The shift on the inner scale that changes the mean score by this much."""
    if scores in _RIGHT:
        return TOTAL * float(stats.norm.ppf(_RIGHT[scores] + gain) - stats.norm.ppf(_RIGHT[scores]))
    if scores == "continuous":
        return gain / SCALE
    return float(np.log1p(10 * gain * np.exp(-((0.7 * TOTAL) ** 2) / 2)) / 0.7)


def _cell(found: ClaimedPower | None) -> str:
    if found is None:
        return "-"
    silent = f" ({1 - found.telling:.0%})" if found.telling < 1 else ""
    return f"{100 * found.power:.0f} ± {100 * found.error:.0f} %{silent}"
