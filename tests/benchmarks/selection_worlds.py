"""How many finalists: whole searches on arrays, at equal tokens.

The settings come as from a sampler that learns: eight at random, then every other one near the best so far. Choosing
and testing are the project's own. The section makes one markdown table, from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.stats.finalists import choose_finalists, pick_winner
from llmsearch_optuna.stats.paired_tests import Clusters, sign_flip_test
from llmsearch_optuna.stats.tail_bound import mean_lower_bound
from tests.benchmarks.worlds import CHANCE, ROW, TOGETHER, Shape, World

Floats = NDArray[np.float64]

BASELINE, TRIALS, FRESH = 0, 24, 3
"""The baseline's number, the trials of a search with 3 finalists, and replicates of finalists and judged rows."""

SHAPES: tuple[Shape, ...] = ("continuous", "0/1", "skewed")


@dataclass(frozen=True)
class Rows:
    """Rows of one world, and the settings that were tried on them."""

    world: World
    rng: np.random.Generator
    difficulty: Floats

    @classmethod
    def of(cls, shape: Shape, rows: int, gain: float, seed: int) -> Rows:
        """Draw the rows."""
        rng = np.random.default_rng(seed)
        return cls(World(shape, rows, gain, seed), rng, ROW * rng.normal(size=rows))

    def scores(self, setting: float | None) -> Floats:
        """Draw the scores of a setting, [rows, 1 + FRESH]: of the search, then fresh ones."""
        rows = len(self.difficulty)
        own = self.difficulty + TOGETHER * self.rng.normal(size=rows)
        return self.world.observed(own[:, None] + CHANCE * self.rng.normal(size=(rows, 1 + FRESH)), setting)


def search(
    rows: Rows, part: NDArray[np.int64], trials: int, baseline: Floats
) -> tuple[list[float | None], list[Floats]]:
    """Try so many settings beside the baseline, looking at the scores of these rows only."""
    tried: list[float | None] = [None]
    scores = [baseline]
    for number in range(trials):
        best = int(np.argmax([table[part, 0].mean() for table in scores]))
        near = tried[best] if number >= 8 and number % 2 else None
        drawn = rows.rng.random() if near is None else float(np.clip(near + 0.1 * rows.rng.normal(), 0, 1))
        tried.append(drawn)
        scores.append(rows.scores(drawn))
    return tried, scores


def winner_of(scores: list[Floats], part: NDArray[np.int64], finalists: int) -> int:
    """The project's own choice on these rows."""
    values = {number: float(table[part, 0].mean()) for number, table in enumerate(scores)}
    chosen = choose_finalists(values, direction="maximize", always=(BASELINE,), k=finalists)
    return pick_winner({n: scores[n][part, 1:] for n in chosen}, direction="maximize").winner


def is_better(baseline: Floats, best: Floats) -> bool:
    """Sign flips and Stringer's bound, as the verdict has them for scores with replicates."""
    first, second = baseline.mean(axis=1), best.mean(axis=1)
    clusters = Clusters(second - first, np.ones(len(first)))
    if clusters.mean <= 0 or sign_flip_test(clusters, alpha=0.05, seed=0).p_value > 0.05:
        return False
    worst = float(min(baseline.min(), best.min()))
    return mean_lower_bound(clusters.units, largest_loss=float(first.mean()) - worst, level=0.05) > 0


def finalists(pool: Executor, share: float) -> str:
    """So many finalists at equal tokens: fewer finalists leave more trials."""
    runs = max(20, round(300 * share))
    lines = []
    for shape in SHAPES:
        for held in (30, 60, 200):
            for number in (1, 2, 3, 5, 8):
                found = _runs(pool, _with_finalists, (shape, held, number), runs)
                worth, error = found[:, 0].mean(), found[:, 0].std() / np.sqrt(runs)
                better = found[:, 1].mean()
                lines.append(
                    f"| {shape} | {held} | {number} | {_trials(number)} | {worth:.2f} ± {error:.2f} | "
                    f"{_percent(better, runs)} |"
                )
    return "\n".join(
        [
            f"### How many finalists, at equal tokens ({runs} searches a line, ± one standard error)\n",
            "The best setting is worth 5 points; 30 % of the rows are held out. A finalist costs three trials, so "
            "fewer of them leave more trials: 24 beside 3 finalists.\n",
            "| scores | held out | finalists | trials | worth of the winner, points | found `better` |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _trials(number: int) -> int:
    return TRIALS + FRESH * (3 - number)


def _with_finalists(shape: Shape, held: int, number: int, seed: int) -> tuple[float, float]:
    total = round(held / 0.3)
    rows = Rows.of(shape, total, 5.0, seed)
    searched, judged = np.arange(held, total), np.arange(held)
    tried, scores = search(rows, searched, _trials(number), rows.scores(None))
    winner = winner_of(scores, searched, number)
    better = winner != BASELINE and is_better(scores[BASELINE][judged, 1:], scores[winner][judged, 1:])
    return rows.world.worth(tried[winner]), float(better)


def _runs(pool: Executor, run: Callable[..., object], what: tuple[object, ...], runs: int) -> Floats:
    tasks = [(*what, seed) for seed in range(runs)]
    return np.array(list(pool.map(run, *zip(*tasks, strict=True), chunksize=max(1, runs // 8))), dtype=np.float64)


def _percent(share: float, runs: int) -> str:
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / runs):.1f} %"


SELECTION_SECTIONS = (finalists,)
