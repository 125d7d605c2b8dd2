"""A study without storage, sampler and engine: the rooms that decide, driven on arrays of scores.

It takes the steps of `search` in `search`'s order (split, trials in flight, looks, finalists, holdout), so thousands
of studies can be counted; `honesty` shows on real searches that both come to the same trials, winner and verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.finalists import Selection, choose_finalists, pick_winner
from llmsearch_optuna.stats.verdict import Verdict, baseline_won, no_holdout_verdict
from llmsearch_optuna.task.split import split_rows
from tests.benchmarks.worlds import World

REPLICATES, HOLDOUT_REPLICATES, IN_FLIGHT = 1, 3, 4
BASELINE, GREEDY = 0, 1


@dataclass(frozen=True)
class ArrayStudy:
    """What came of a study.

    Attributes:
        settings: Of each trial; None for baseline and greedy.
        rows_done: Rows of each trial; fewer than all where it was pruned.
        winner: Trial number.
        selection: Of the finalists.
        verdict: Of the holdout.
        saved: The share of the trials' rows that pruning spared.
    """

    settings: tuple[float | None, ...]
    rows_done: tuple[int, ...]
    winner: int
    selection: Selection
    verdict: Verdict
    saved: float


def run_study(world: World, settings: Sequence[float], *, pruner: PairedPruner | None, seed: int) -> ArrayStudy:
    """Run a study: the baseline, greedy, then these settings."""
    order, held = split_rows(range(world.rows), 0.3, seed)
    search, holdout = np.array(order), np.array(held, dtype=np.int64)
    tried: tuple[float | None, ...] = (None, None, *settings)
    scores = [
        world.scores(setting, REPLICATES + HOLDOUT_REPLICATES, greedy=number == GREEDY)
        for number, setting in enumerate(tried)
    ]
    first = np.stack([table[search, 0] for table in scores])  # [trials, search rows]
    rows_done = run_trials(first, pruner, bounds=world.bounds, in_flight=IN_FLIGHT)
    values = {n: float(first[n].mean()) for n, done in enumerate(rows_done) if done == len(search)}
    finalists = choose_finalists(values, direction="maximize", always=(BASELINE, GREEDY))
    again = {n: scores[n][search, :1] if n == GREEDY else scores[n][search, REPLICATES:] for n in finalists}
    selection = pick_winner(again, direction="maximize")
    return ArrayStudy(
        settings=tried,
        rows_done=tuple(rows_done),
        winner=selection.winner,
        selection=selection,
        verdict=_verdict(world, scores, selection.winner, holdout, seed),
        saved=1 - sum(rows_done) / first.size,
    )


def run_trials(
    first: NDArray[np.float64],
    pruner: PairedPruner | None,
    *,
    bounds: tuple[float, float] | None,
    in_flight: int,
) -> list[int]:
    """Return the rows that each trial did, given what all would score, [trials, rows] in the permutation's order."""
    total = first.shape[1]
    done: list[int] = []
    for number, scores in enumerate(first):
        complete = [n for n in range(max(0, number - in_flight + 1)) if done[n] == total]
        rows = total
        if pruner is not None and number > GREEDY and complete:
            incumbent = first[max(complete, key=lambda n: (first[n].mean(), -n))]
            for look in pruner.looks(total)[:-1]:
                if pruner.decide(scores[:look], incumbent, total, bounds=bounds, direction="maximize"):
                    rows = look
                    break
        done.append(rows)
    return done


def _verdict(
    world: World, scores: Sequence[NDArray[np.float64]], winner: int, holdout: NDArray[np.int64], seed: int
) -> Verdict:
    if not len(holdout):
        return no_holdout_verdict(rows=world.rows)
    if winner == BASELINE:
        return baseline_won()
    best = scores[winner][holdout, :1] if winner == GREEDY else scores[winner][holdout, :HOLDOUT_REPLICATES]
    return compare(scores[BASELINE][holdout, :HOLDOUT_REPLICATES], best, bounds=world.bounds, seed=seed)
