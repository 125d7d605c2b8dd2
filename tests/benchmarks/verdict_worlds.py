"""Worlds that are hard for a verdict: rare large losses, few texts that change, few rows, settings that rescue rows.

Each section makes one markdown table of `honesty` and of `docs/verdict.md`; all follow from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.stats.comparison import compare
from tests.benchmarks.worlds import Shape, World

Floats = NDArray[np.float64]


def asymmetric(pool: Executor, share: float) -> str:
    """A setting that gains a little and derails on one row in twenty, worth nothing on average."""
    runs = max(20, round(400 * share))
    lines = []
    for noise in (0.01, 0.05):
        for rows in (12, 18, 30, 60, 100, 200):
            better = _count(pool, _derails, [(noise, rows, seed) for seed in range(runs)])
            symmetric = _count(pool, _is_found, [(rows, seed) for seed in range(runs)])
            lines.append(f"| {noise} | {rows} | {_percent(better, runs)} | {_percent(symmetric, runs)} |")
    return "\n".join(
        [
            f"### A little better, but derailing on 5 % of the rows ({runs} looks a line)\n",
            "Scores around 0.4 (standard deviation 0.1) with bounds 0 and 1; a derailed row scores 0, the others gain "
            "as much in return, so that nothing is gained on average. In the last column every row gains, normally "
            "distributed around what a t test finds in 80 % of looks; the standard deviation is a third of the "
            "baseline's mean: what the caution costs.\n",
            "| noise | rows | `better`, nothing to find | `better`, where a t test finds 80 % |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def _derails(noise: float, rows: int, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    baseline = np.clip(rng.normal(0.4, 0.1, rows), 0.05, 0.95)
    gained = baseline * (1 + 0.05 / 0.95) + noise * rng.normal(size=rows)
    best = np.clip(np.where(rng.random(rows) < 0.05, 0.0, gained), 0.0, 1.0)
    return compare(baseline, best, bounds=(0, 1), seed=seed).answer == "better"


def _is_found(rows: int, seed: int) -> bool:
    from scipy import stats

    rng = np.random.default_rng(seed)
    baseline = rng.normal(0.3, 0.05, rows)
    gain = 0.1 / np.sqrt(rows) * (stats.t.isf(0.025, rows - 1) + stats.t.isf(0.2, rows - 1))
    best = baseline + gain + 0.1 * rng.normal(size=rows)
    return compare(baseline, best, bounds=(0, 1), seed=seed).answer == "better"


def sparse(pool: Executor, share: float) -> str:
    """A loss of exactly the margin, all of it on few rows; the other texts are the same."""
    runs = max(20, round(1000 * share))
    lines = []
    for lost, won in ((0.05, 0.0), (0.10, 0.05), (0.20, 0.15)):
        cells = [
            _percent(_count(pool, _is_accepted, [(lost, won, rows, seed) for seed in range(runs)]), runs)
            for rows in (6, 12, 30, 60, 200)
        ]
        lines.append(f"| {lost:.0%} | {won:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### `margin=0.05`, and a true loss of 0.05 ({runs} looks a cell)\n",
            "Scores are 0 or 1 and mostly the same; so often the margin is called kept:\n",
            "| rows lost | rows won | 6 rows | 12 | 30 | 60 | 200 |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _is_accepted(lost: float, won: float, rows: int, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    luck = rng.random(rows)
    baseline = np.where(luck < lost, 1.0, np.where(luck < lost + won, 0.0, (luck < 0.6).astype(float)))
    best = np.where(luck < lost, 0.0, np.where(luck < lost + won, 1.0, baseline))
    return compare(baseline, best, bounds=(0, 1), margin=0.05, seed=seed).answer == "not worse than margin"


def claimed_power(pool: Executor, share: float) -> str:
    """What a look says it finds in 4 of 5 cases: how often is it found?"""
    looks, tries = max(5, round(40 * share)), 10
    lines = []
    for shape in ("continuous", "0/1", "skewed"):
        cells = []
        for rows in (8, 18, 60, 200):
            found = list(pool.map(_found_of_claim, *zip(*((shape, rows, n, tries) for n in range(looks)), strict=True)))
            told = [share for share in found if share is not None]
            cells.append(f"{100 * float(np.mean(told)):.0f} % ({len(found) - len(told)})" if told else f"- ({looks})")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### What a look says it finds in 80 % of cases ({looks} looks, each claim tried {tries} times)\n",
            "The power of the verdict at the claimed difference, one replicate; in brackets the looks that claim "
            "nothing, since so few rows find no difference so often.\n",
            "| scores | 8 rows | 18 | 60 | 200 |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )


def _found_of_claim(shape: Shape, rows: int, seed: int, tries: int) -> float | None:
    world = World(shape, rows, 0.0, 70_000 + seed)
    first = compare(world.scores(None, 1), world.scores(0.7, 1), bounds=world.bounds)
    if first.detectable is None or (shape == "0/1" and first.detectable > 0.55):
        return None
    found = 0
    for again in range(tries):
        other = World(shape, rows, 100 * first.detectable, 80_000 + tries * seed + again)
        found += compare(other.scores(None, 1), other.scores(0.7, 1), bounds=other.bounds).answer == "better"
    return found / tries


def rescues(pool: Executor, share: float) -> str:
    """Settings that cost a little everywhere and end the loops on one row in twenty: how many does the pruner lose?"""
    runs = max(20, round(600 * share))
    lines = []
    for noise in (0.02, 0.05, 0.1):
        cells = []
        for knows in (False, True):
            for rows in (32, 60, 200):
                lost = list(pool.map(_is_lost, *zip(*((knows, noise, rows, n) for n in range(runs)), strict=True)))
                better = [one for one in lost if one is not None]
                cells.append(f"{100 * float(np.mean(better)):.1f} %")
        lines.append(f"| {noise} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### Settings that rescue rare rows, lost by the pruner ({runs} runs a cell)\n",
            "The incumbent scores 0 on 5 % of the rows, the trial 1; on the others it is 0.02 worse. Counted are runs "
            "in which the trial is better on all rows together.\n",
            "| noise | t rule alone, 32 rows | 60 | 200 | with failing rows, 32 rows | 60 | 200 |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _is_lost(knows: bool, noise: float, rows: int, seed: int) -> bool | None:
    rng = np.random.default_rng(seed)
    loops = rng.random(rows) < 0.05
    incumbent = np.where(loops, 0.0, np.clip(rng.normal(0.5, 0.12, rows), 0.05, 0.95))
    trial = np.where(loops, 1.0, np.clip(incumbent - 0.02 + noise * rng.normal(size=rows), 0, 1))
    if trial.mean() <= incumbent.mean():
        return None
    pruner = PairedPruner(knows_failing_rows=knows)
    looks = pruner.looks(rows)[:-1]
    return any(pruner.decide(trial[:k], incumbent, rows, bounds=(0, 1), direction="maximize") for k in looks)


SECTIONS = (asymmetric, sparse, claimed_power, rescues)


def _count(pool: Executor, function: Callable[..., bool], tasks: Sequence[tuple[Any, ...]]) -> int:
    return sum(pool.map(function, *zip(*tasks, strict=True), chunksize=max(1, len(tasks) // 16)))


def _percent(count: int, runs: int) -> str:
    return f"{100 * count / runs:.1f} %"
