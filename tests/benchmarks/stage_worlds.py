"""The verdict in stages, beside one look at all rows: false claims, finds, rows, coverage; and replicates beside rows.

Each section makes one markdown table of `honesty` and of `docs/verdict.md`; all follow from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.group_sequential import StageDesign, judge_stage
from llmsearch_optuna.stats.replicate_allocation import Allocation, allocate, difference_variance
from llmsearch_optuna.stats.verdict import Verdict

Floats = NDArray[np.float64]
Scores = Literal["continuous", "0/1", "skewed", "derailing"]

ROWS = 400


@dataclass(frozen=True)
class Outcome:
    """What came of one comparison in stages, and of one look at all rows."""

    answer: str
    fixed_answer: str
    rows: int
    covered: bool
    fixed_covered: bool
    half_width: float
    fixed_half_width: float


def staged(pool: Executor, share: float) -> str:
    """Is "better" said too often over all stages, how many rows are spared, and what does that cost?"""
    runs = max(10, round(1000 * share))
    lines = []
    for scores in ("continuous", "0/1", "skewed", "derailing"):
        for gain in (0.0, 1.0, 2.0) if scores != "derailing" else (0.0,):
            found = list(pool.map(_outcome, *zip(*[(scores, gain, seed) for seed in range(runs)], strict=True)))
            cells = [
                _percent(f.answer == "better" for f in found),
                _percent(f.fixed_answer == "better" for f in found),
                _percent(f.answer == "worse" for f in found),
                f"{np.mean([f.rows for f in found]) / ROWS:.2f}",
                _percent(f.covered for f in found),
                _percent(f.fixed_covered for f in found),
                f"{np.median([f.half_width for f in found]) / np.median([f.fixed_half_width for f in found]):.1f}",
            ]
            lines.append(f"| {scores} | {_GAINS[gain]} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### In stages, beside one look at all {ROWS} rows ({runs} comparisons a line)\n",
            "Four stages of 100 rows, one replicate. The gain is nothing, what a t test of all rows finds in 80 % of "
            "looks, or twice that. Rows are a share of all; widths are medians, of the stages' interval in those of "
            "the fixed look's.\n",
            "| scores | gain | `better` | `better`, fixed | `worse` | rows used | covers | covers, fixed | width |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


_GAINS = {0.0: "nothing", 1.0: "found in 80 %", 2.0: "twice that"}
_DETECTED = 1.959964 + 0.841621


def _outcome(scores: Scores, gain: float, seed: int) -> Outcome:
    rng = np.random.default_rng([seed, 20])
    baseline, best, truth = _sides(scores, gain, rng)
    bounds = None if scores == "skewed" else (0.0, 1.0)

    def verdict(rows: int, alpha: float) -> Verdict:
        return compare(
            baseline[:rows], best[:rows], bounds=bounds, seed=seed, alpha=alpha, planned=StageDesign.of(ROWS).planned
        )

    found = run_stages(verdict, StageDesign.of(ROWS))
    fixed = verdict(ROWS, 0.05)
    return Outcome(
        answer=found.answer,
        fixed_answer=fixed.answer,
        rows=found.rows,
        covered=_covers(found, truth),
        fixed_covered=_covers(fixed, truth),
        half_width=_half_width(found),
        fixed_half_width=_half_width(fixed),
    )


def run_stages(verdict: Callable[[int, float], Verdict], design: StageDesign) -> Verdict:
    """Return the verdict of the stage after which the comparison ends.

    Args:
        verdict: Of so many first rows, at a level.
        design: The stages.
    """
    for stage, rows in enumerate(design.prompts):
        found = judge_stage(partial(verdict, rows), design, stage)
        if found.stopped is not None:
            return found
    raise AssertionError("the last stage ends every comparison")


def _sides(scores: Scores, gain: float, rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Baseline and winner, [rows], and the true gain; `gain` in units of what all rows find in 80 % of looks."""
    if scores == "0/1":
        truth = gain * _DETECTED * math.sqrt(0.3 / ROWS)  # 30 % of the rows differ
        differs, won = rng.random(ROWS) < 0.3, rng.random(ROWS) < 0.5 + truth / 0.6
        baseline = np.where(differs, ~won, rng.random(ROWS) < 0.4).astype(np.float64)
        return baseline, np.where(differs, won, baseline).astype(np.float64), truth
    if scores == "derailing":
        baseline = np.clip(rng.normal(0.4, 0.1, ROWS), 0.05, 0.95)
        gained = baseline * (1 + 0.05 / 0.95) + 0.01 * rng.normal(size=ROWS)
        return baseline, np.where(rng.random(ROWS) < 0.05, 0.0, gained), 0.0
    if scores == "skewed":
        row, own = rng.normal(size=ROWS), rng.normal(size=(2, ROWS))
        sides = np.exp(0.7 * (1.5 * row + own)) / 10
        truth = gain * _DETECTED * 0.45 / math.sqrt(ROWS)
        return sides[0], sides[1] + truth, truth
    baseline = np.clip(rng.normal(0.35, 0.08, ROWS), 0.0, 1.0)
    truth = gain * _DETECTED * 0.1 / math.sqrt(ROWS)
    return baseline, baseline + truth + 0.1 * rng.normal(size=ROWS), truth


def _covers(verdict: Verdict, truth: float) -> bool:
    assert verdict.interval is not None
    return verdict.interval[0] - 1e-12 <= truth <= verdict.interval[1] + 1e-12


def _half_width(verdict: Verdict) -> float:
    assert verdict.interval is not None
    return (verdict.interval[1] - verdict.interval[0]) / 2


def replicates(pool: Executor, share: float) -> str:
    """The verdict's budget by the variance split, and three replicates for every row."""
    runs = max(50, round(4000 * share))
    lines = []
    for reserve in (100, 200, 600):
        for sampling in (0.0, 0.3, 1.0, 4.0):
            errors = np.array(list(pool.map(_allocation_errors, *_tasks(reserve, sampling, runs), chunksize=runs)))
            chosen = np.median(errors[:, 2]), np.median(errors[:, 3])
            mean_squares = np.sqrt(np.mean(errors[:, :2] ** 2, axis=0))
            lines.append(
                f"| {reserve} | {sampling} | {chosen[0]:.0f} x {chosen[1]:.0f} | {mean_squares[0]:.3f} | "
                f"{mean_squares[1]:.3f} |"
            )
    return "\n".join(
        [
            f"### Rows or replicates: 600 completions a side ({runs} comparisons a line)\n",
            "Differences between rows have a standard deviation of 1; sampling adds the variance given, to each "
            "replicate. The split is estimated from 3 replicates of 100 search rows.\n",
            "| rows in reserve | variance of sampling | chosen: rows x replicates | error of the mean difference | "
            "error with 3 replicates each |",
            "|---|---|---|---|---|",
            *lines,
        ]
    )


def _tasks(reserve: int, sampling: float, runs: int) -> tuple[list[int], list[float], list[int]]:
    return [reserve] * runs, [sampling] * runs, list(range(runs))


def _allocation_errors(reserve: int, sampling: float, seed: int) -> tuple[float, float, int, int]:
    rng = np.random.default_rng([seed, 21])
    seen = _differences(100, 3, sampling, rng)
    split = difference_variance(np.zeros((100, 1)), seen)
    chosen = allocate(split, rows=reserve, budget=600, most_replicates=3)
    equal = Allocation(min(reserve, 200), 3)
    ours, theirs = (float(_differences(a.rows, a.replicates, sampling, rng).mean()) for a in (chosen, equal))
    return ours, theirs, chosen.rows, chosen.replicates


def _differences(rows: int, replicates: int, sampling: float, rng: np.random.Generator) -> Floats:
    return rng.normal(size=(rows, 1)) + math.sqrt(sampling) * rng.normal(size=(rows, replicates))


def _percent(flags: Iterable[bool]) -> str:
    found = list(flags)
    return f"{100 * sum(found) / len(found):.1f} %"


STAGE_SECTIONS = (staged, replicates)
"""Makers of the tables: (pool, share of the runs) to markdown."""
