"""Worlds that are hard for a verdict: rare large losses, few texts that change, few rows, settings that rescue rows.

Each section makes one markdown table of `honesty` and of `docs/verdict.md`; all follow from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.paired_tests import Clusters, margin_p_value, mcnemar_test
from tests.benchmarks.claimed_power import claimed_power

Floats = NDArray[np.float64]


def asymmetric(pool: Executor, share: float) -> str:
    """A setting that gains a little and derails on one row in twenty, worth nothing on average."""
    runs = max(20, round(400 * share))
    row_counts, lines = (12, 18, 30, 60, 100, 200), []
    symmetric = [_count(pool, _is_found, [(rows, seed) for seed in range(runs)]) for rows in row_counts]
    for noise in (0.01, 0.05):
        for rows, found in zip(row_counts, symmetric, strict=True):
            better = _count(pool, _derails, [(noise, rows, seed) for seed in range(runs)])
            lines.append(f"| {noise} | {rows} | {_percent(better, runs)} | {_percent(found, runs)} |")
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
    rng = np.random.default_rng(seed)
    baseline = rng.normal(0.3, 0.05, rows)
    gain = 0.1 / np.sqrt(rows) * (stats.t.isf(0.025, rows - 1) + stats.t.isf(0.2, rows - 1))
    best = baseline + gain + 0.1 * rng.normal(size=rows)
    return compare(baseline, best, bounds=(0, 1), seed=seed).answer == "better"


def sparse(pool: Executor, share: float) -> str:
    """A loss of exactly the margin, all of it on few rows; the other texts are the same. Counted, not simulated."""
    rows = (6, 12, 30, 60, 200) if share >= 0.1 else (6, 12, 30)
    lines = []
    for lost, won in ((0.05, 0.0), (0.10, 0.05), (0.20, 0.15)):
        cells = pool.map(chance_of_accepting, [lost] * len(rows), [won] * len(rows), rows)
        lines.append(f"| {lost:.0%} | {won:.0%} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
    return "\n".join(
        [
            "### `margin=0.05`, and a true loss of 0.05 (exact: all counts of lost and won rows)\n",
            "Scores are 0 or 1 and mostly the same; so often the margin is called kept:\n",
            "| rows lost | rows won | " + " | ".join([f"{rows[0]} rows", *map(str, rows[1:])]) + " |",
            "|---|---|" + "---|" * len(rows),
            *lines,
        ]
    )


def chance_of_accepting(lost: float, won: float, rows: int) -> float:
    """Return how often a loss of 0.05 is called less than a margin of 0.05, over all counts of rows lost and won."""
    chance = 0.0
    for losses in range(rows + 1):
        of_lost = float(stats.binom.pmf(losses, rows, lost))
        for wins in range(rows + 1 - losses):
            likely = of_lost * float(stats.binom.pmf(wins, rows - losses, won / (1 - lost)))
            if likely < 1e-6 or wins - losses <= -0.05 * rows:
                continue
            scores = np.r_[-np.ones(losses), np.ones(wins), np.zeros(rows - losses - wins)]
            clusters = Clusters(scores, np.ones(rows))
            if mcnemar_test(wins, losses, rows, alpha=0.05).low <= -0.05:
                continue
            chance += likely * (margin_p_value(clusters, 0.05, largest_loss=1.0, seed=wins) <= 0.025)
    return chance


def clustered(pool: Executor, share: float) -> str:
    """Equal settings on rows that share prompts: told of them, and taken as if all rows were different."""
    runs = max(20, round(600 * share))
    lines = []
    for prompts in (12, 30, 60):
        found = np.array(list(pool.map(_clustered_look, [prompts] * runs, range(runs), chunksize=max(1, runs // 8))))
        cells = [_percent(int(found[:, place].sum()), runs) for place in range(4)]
        lines.append(f"| {prompts} | {4 * prompts} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### Rows that share a prompt, nothing to find ({runs} looks a line)\n",
            "Four rows a prompt, whose differences have a correlation of 0.5:\n",
            "| prompts | rows | `better` or `worse` | interval covers | as if all rows were different: `better` or "
            "`worse` | interval covers |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _clustered_look(prompts: int, seed: int) -> tuple[bool, bool, bool, bool]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(prompts), 4)
    baseline = rng.normal(0.4, 0.1, len(labels))
    best = baseline + 0.07 * rng.normal(size=prompts)[labels] + 0.07 * rng.normal(size=len(labels))
    found: list[bool] = []
    for told in (list(labels), None):
        verdict = compare(baseline, best, prompts=told, bounds=(0, 1), seed=seed)
        low, high = verdict.interval or (0.0, 0.0)
        found += [verdict.answer in ("better", "worse"), low <= 0 <= high]
    return found[0], found[1], found[2], found[3]


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
                cells.append(_percent(sum(better), len(better)))
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


SECTIONS = (asymmetric, sparse, clustered, claimed_power, rescues)


def _count(pool: Executor, function: Callable[..., bool], tasks: Sequence[tuple[Any, ...]]) -> int:
    return sum(pool.map(function, *zip(*tasks, strict=True), chunksize=max(1, len(tasks) // 16)))


def _percent(count: int, runs: int) -> str:
    share = count / runs
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / runs):.1f} %"
