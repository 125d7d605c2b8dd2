"""Compares two configurations under a metric that scores all held-out rows at once (BLEU …)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.detectable import POWER, PlannedLook
from llmsearch_optuna.stats.jackknife import influences
from llmsearch_optuna.stats.optimism import Optimism
from llmsearch_optuna.stats.paired_tests import (
    FEWEST_CLUSTERS,
    Clusters,
    Floats,
    LargestLosses,
    prompt_labels,
    swap_test,
)
from llmsearch_optuna.stats.tail_bound import mean_above_p_value, worst_score
from llmsearch_optuna.stats.verdict import Verdict, judged
from llmsearch_optuna.types import Bounds, Direction

_MOST_GROUPS = 200
"""Of prompts that are left out together to see what each adds to a score of all rows."""


class CorpusScore(Protocol):
    """A metric that scores all rows at once."""

    def __call__(
        self, completions: Sequence[Any], references: Sequence[Any], rows: Sequence[Mapping[str, Any]], /
    ) -> float:
        """Return one score of all rows."""
        ...


def compare_corpus(
    score: CorpusScore,
    baseline: Sequence[Sequence[Any]],
    best: Sequence[Sequence[Any]],
    *,
    references: Sequence[Any],
    rows: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
    direction: Direction = "maximize",
    seed: int = 0,
    margin: float | None = None,
    alpha: float = 0.05,
    unseen_level: float | None = None,
    look: int = 1,
    optimism: Optimism | None = None,
    unscored: int = 0,
    permutations: int = 999,
    resamples: int = 300,
    planned: PlannedLook | None = None,
) -> Verdict:
    """Compare two configurations under a metric that scores all rows at once (BLEU …).

    The decision is an approximate randomisation test: baseline and winner swap their completions on random prompts
    and the metric is computed again. The interval comes from resampling prompts and computing the metric again: t
    quantiles around the difference with the bootstrap's standard error. Stringer's bound counts where it is more
    cautious, on what each prompt adds to the score (the jackknife's).

    Args:
        score: The metric; called 2 · replicates · (permutations + resamples + prompts, 200 at most) times. Not a
            number means that it cannot be computed on the rows drawn (see `swap_test`).
        baseline: Completions [rows][replicates], in the form that ``score`` takes.
        best: The winner's completions on the same rows.
        references: One a row.
        rows: The rows' columns, handed to the metric.
        prompts: As for `compare`, and so are the arguments not named here.
        permutations: Swaps drawn.
        resamples: Bootstrap samples drawn.
        planned: As for `compare`.
    """
    if not len(baseline) == len(best) == len(references) > 0:
        raise InputError(f"{len(baseline)} and {len(best)} completions for {len(references)} references do not match")
    columns = rows if rows is not None else [{} for _ in references]
    labels = prompt_labels(prompts, len(references))
    count, replicates = int(labels.max()) + 1, max(len(baseline[0]), len(best[0]))
    sign = -1.0 if direction == "minimize" else 1.0
    pairs = (baseline, best)

    def corpus_score(picked: Sequence[int], who: NDArray[np.int64]) -> float:
        """The mean over replicates; ``who[row]`` says whose completion is taken."""
        scores = []
        for replicate in range(replicates):
            found = [pairs[who[row]][row][replicate % len(pairs[who[row]][row])] for row in picked]
            scores.append(score(found, [references[r] for r in picked], [columns[r] for r in picked]))
        return math.fsum(scores) / replicates

    everything = range(len(references))
    means = (
        corpus_score(everything, np.zeros(len(references), dtype=np.int64)),
        corpus_score(everything, np.ones(len(references), dtype=np.int64)),
    )
    gain = sign * (means[1] - means[0])
    test, error = swap_test(
        lambda picked, who: sign * (corpus_score(picked, who) - corpus_score(picked, 1 - who)),
        labels,
        alpha=alpha,
        seed=seed,
        permutations=permutations,
        resamples=resamples,
    )
    sides = [
        sign * influences(partial(corpus_score, who=np.full(len(references), who)), labels, most_groups=_MOST_GROUPS)
        for who in (0, 1)
    ]
    unseen = _unseen_corpus_rows(sides[0], sides[1], bounds, sign)
    if unseen is not None:
        test = test.with_unseen_rows(*unseen, alpha=alpha, level=unseen_level)
    return judged(
        test,
        gain=gain,
        detectable=_detectable_corpus(error, count, planned or PlannedLook(count, alpha)),
        margin_p_value=_corpus_margin_p_value(gain, margin, error, count, unseen) if margin else None,
        means=means,
        counts=None,
        rows=len(references),
        prompts=count,
        replicates=(len(baseline[0]), len(best[0])),
        widest=None if bounds is None else bounds[1] - bounds[0],
        direction=direction,
        margin=margin or None,
        alpha=alpha,
        look=look,
        optimism=optimism,
        unscored=unscored,
        differences=(),
    )


def _unseen_corpus_rows(
    baseline: Floats, best: Floats, bounds: Bounds | None, sign: float
) -> tuple[Clusters, LargestLosses] | None:
    """What each prompt adds to the gain, and the most that one more could cost; None where that is not known.

    Args:
        baseline: What each prompt adds to the baseline's score, gains positive, [prompts]; see `influences`.
        best: To the winner's.
        bounds: Of the metric.
        sign: -1 where a lower score is better.
    """
    gains = best - baseline
    if not np.all(np.isfinite(gains)):
        return None
    worst = worst_score(baseline, best, bounds, sign)
    losses = LargestLosses(max(0.0, float(baseline.mean()) - worst), max(0.0, float(best.mean()) - worst))
    return Clusters(gains, np.ones(len(gains))), losses


def _corpus_margin_p_value(
    gain: float, margin: float, error: float, prompts: int, unseen: tuple[Clusters, LargestLosses] | None
) -> float:
    """Return the one-sided p-value of "the loss is the margin or more"."""
    if unseen is None:
        return 1.0
    clusters, losses = unseen
    p_value = mean_above_p_value(clusters.units, largest_loss=losses.winner, threshold=-margin)
    if error > 0:  # Nothing varies where the completions are the same: then only what was not seen counts.
        return max(p_value, float(stats.t.sf((gain + margin) / error, prompts - 1)))
    return p_value if gain > -margin else 1.0


def _detectable_corpus(standard_error: float, prompts: int, look: PlannedLook) -> float | None:
    """By the normal formula: a metric of all rows at once cannot be asked hundreds of times more.

    Args:
        standard_error: On so many prompts.
        prompts: How many they are.
        look: What is planned.
    """
    if look.prompts < FEWEST_CLUSTERS or not math.isfinite(standard_error) or standard_error == 0:
        return None
    quantiles = stats.t.isf(look.alpha / 2, look.prompts - 1) + stats.t.isf(1 - POWER, look.prompts - 1)
    return float(standard_error * math.sqrt(prompts / look.prompts) * quantiles)
