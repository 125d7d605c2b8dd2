"""Compares two configurations by their scores on the same held-out rows.

Scores come in, a verdict goes out. A test decides, its interval agrees with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.detectable import (
    PlannedLook,
    detectable_gain,
    detectable_replicated_share,
    detectable_share,
    room_above,
)
from llmsearch_optuna.stats.optimism import Optimism
from llmsearch_optuna.stats.paired_tests import (
    Clusters,
    Floats,
    LargestLosses,
    PairedTest,
    margin_p_value,
    mcnemar_test,
    prompt_labels,
    score_rows_of,
    sign_flip_test,
    two_valued_test,
)
from llmsearch_optuna.stats.tail_bound import worst_score
from llmsearch_optuna.stats.verdict import Verdict, judged
from llmsearch_optuna.types import Bounds, Direction


def compare(
    baseline: ArrayLike,
    best: ArrayLike,
    *,
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
    planned: PlannedLook | None = None,
) -> Verdict:
    """Compare two configurations on the same held-out rows.

    Replicates are averaged within their row, rows with the same prompt form one cluster. The decision is an exact
    McNemar test where the scores are 0/1 (one replicate, distinct prompts), otherwise a sign-flip permutation test of
    the clusters, and Stringer's bound where that is more cautious: rows that were not seen could have lost all of
    their score. The interval is the one that goes with the test (see `paired_tests`), and both always agree. With
    fewer than 6 prompts no result can be significant.

    Args:
        baseline: Scores [rows] or [rows, replicates].
        best: The winner's scores on the same rows; the number of replicates may differ (a deterministic
            configuration needs one).
        prompts: One label a row; rows with the same label are one cluster. Default: all rows are distinct.
        bounds: Of the metric; they tell 0/1 scores, limit the interval, and say what a row can lose. Without bounds
            the worst score that either side got stands for the worst one.
        direction: ``"maximize"`` or ``"minimize"``.
        seed: Of the sampled permutations.
        margin: A loss below this is acceptable; None or 0 asks plainly whether the winner is better.
        alpha: The error rate of the two-sided test; the interval has 1 - alpha.
        unseen_level: The one-sided level of Stringer's bound; `alpha` where it is None.
        look: Which look at this holdout it is.
        optimism: See `optimism`, carried along.
        unscored: Held-out rows that are missing here since they could not be scored, carried along.
        planned: The look that this is a stage of: what is detectable is said of it. Default: this is all.

    Raises:
        InputError: The scores do not match or are not finite.
    """
    first, second = score_rows_of(baseline, "baseline"), score_rows_of(best, "best")
    if len(first) != len(second):
        raise InputError(f"the baseline has {len(first)} rows, the winner {len(second)}; compare them on the same rows")
    labels = prompt_labels(prompts, len(first))
    sign = -1.0 if direction == "minimize" else 1.0
    differences = second.mean(axis=1) - first.mean(axis=1)
    scale = float(np.max(np.abs([first.mean(axis=1), second.mean(axis=1)])))
    differences[np.abs(differences) <= 1e-12 * scale] = 0.0  # replicates averaged in another order
    clusters = Clusters.of(sign * differences, labels)
    unit = _two_valued_unit(first, second, bounds)
    wins, losses = int(np.sum(sign * differences > 0)), int(np.sum(sign * differences < 0))
    worst = worst_score(sign * first, sign * second, bounds if unit is None else bounds or (0.0, 1.0), sign)
    largest_loss = float(np.max(sign * first)) - worst
    unseen = LargestLosses(float(np.mean(sign * first)) - worst, float(np.mean(sign * second)) - worst)
    if unit is None:
        test = sign_flip_test(clusters, alpha=alpha, seed=seed)
        test = test.with_unseen_rows(clusters, unseen, alpha=alpha, level=unseen_level)
    elif first.shape[1] == second.shape[1] == 1 and len(clusters) == len(first):
        test = _scaled(mcnemar_test(wins, losses, len(first), alpha=alpha), unit)
    else:
        test = two_valued_test(clusters, unit, alpha=alpha, seed=seed)
        test = test.with_unseen_rows(clusters, unseen, alpha=alpha, level=unseen_level)
    return judged(
        test,
        gain=clusters.mean,
        detectable=_detectable(
            sign * first,
            sign * second,
            labels,
            unit,
            worst,
            planned or PlannedLook(len(clusters), alpha, unseen_level),
            seed,
        ),
        margin_p_value=margin_p_value(clusters, margin, largest_loss=largest_loss, seed=seed) if margin else None,
        means=(float(first.mean()), float(second.mean())),
        counts=(wins, len(first) - wins - losses, losses),
        rows=len(first),
        prompts=len(clusters),
        replicates=(first.shape[1], second.shape[1]),
        widest=None if bounds is None else bounds[1] - bounds[0],
        direction=direction,
        margin=margin or None,
        alpha=alpha,
        look=look,
        optimism=optimism,
        unscored=unscored,
        differences=tuple(float(d) for d in differences),
    )


def _detectable(
    first: Floats,
    second: Floats,
    labels: NDArray[np.int64],
    unit: float | None,
    worst: float,
    look: PlannedLook,
    seed: int,
) -> float | None:
    """The true difference that a look like this one finds in 4 of 5 cases; scores with gains positive."""
    clusters = int(labels.max()) + 1
    if unit is None:
        weight = clusters / len(labels)
        ours, theirs = (np.asarray(weight * np.bincount(labels, side.mean(axis=1)), float) for side in (first, second))
        return detectable_gain(
            ours,
            theirs,
            units=look.prompts,
            worst=worst,
            alpha=look.alpha,
            unseen_level=look.unseen_level,
            seed=seed,
        )
    answers = [(side - worst) / unit for side in (first, second)]
    if first.shape[1] == second.shape[1] == 1 and clusters == len(labels):
        return _scaled_gain(_detectable_answers(answers[0][:, 0], answers[1][:, 0], look), unit)
    if clusters < len(labels):
        answers = [(np.bincount(labels, side.mean(axis=1)) / np.bincount(labels))[:, None] for side in answers]
    gain = detectable_replicated_share(answers[0], answers[1], units=look.prompts, alpha=look.alpha, seed=seed)
    return _scaled_gain(gain, unit)


def _detectable_answers(first: Floats, second: Floats, look: PlannedLook) -> float | None:
    rows, right = len(first), float((first.mean() + second.mean()) / 2)
    discordant = (float(np.sum(first != second)) + 0.5) / (rows + 1)
    share = min(max((right * rows + 0.5) / (rows + 1), discordant / 2), 1 - discordant / 2)
    room = min(room_above(right, rows), 1 - share)
    return detectable_share(discordant, share, units=look.prompts, room=room, alpha=look.alpha)


def _scaled_gain(gain: float | None, unit: float) -> float | None:
    return None if gain is None else unit * gain


def _scaled(test: PairedTest, unit: float) -> PairedTest:
    return replace(test, low=unit * test.low, high=unit * test.high)


def _two_valued_unit(first: Floats, second: Floats, bounds: Bounds | None) -> float | None:
    """Return the distance of the two values where every single score is one of the ends of the bounds."""
    low, high = bounds or (0.0, 1.0)
    both = np.concatenate([first.ravel(), second.ravel()])
    return high - low if bool(np.all((both == low) | (both == high))) else None
