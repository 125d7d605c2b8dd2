"""Has a score got worse? One-sided, for a gate that should be quiet as long as nothing has happened.

The same settings were scored on the same rows then and now. The alarm goes off where a loss above the margin is
shown, by the tests that a verdict rests on; how often it would go off if nothing had changed is measured on the
differences of these very rows. Scores in, numbers out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.paired_tests import (
    FEWEST_CLUSTERS,
    Clusters,
    Floats,
    prompt_labels,
    score_rows_of,
    sign_flip_p_above,
    sign_flip_p_values_above,
)
from llmsearch_optuna.stats.tail_bound import mean_above_p_value, mean_lower_bounds, worst_score
from llmsearch_optuna.types import Bounds, Direction

ALPHA = 0.025
"""The level of the alarm. What is recommended did well when it was tuned, a little by luck, and falls back: at
5 % it would raise more alarms than that although nothing had changed (see `tests/benchmarks/false_alarms.py`)."""

_DRAWS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """What two scorings of the same rows say about a loss.

    Attributes:
        then: The mean score of the earlier one.
        now: The mean score of the later one.
        loss: How much worse the later one is on average, in the unit of the score; negative where it is better.
        margin: The loss that is accepted.
        p_value: One-sided, of "the loss is the margin or less".
        is_worse: Whether a loss above the margin is shown: the alarm.
        false_alarm_rate: How often the alarm would go off on these rows if nothing had changed; measured.
        rows: How many were compared.
        prompts: Distinct prompts among them.
        changed: Rows whose score is another one.
        level: Of the test.
    """

    then: float
    now: float
    loss: float
    margin: float
    p_value: float
    is_worse: bool
    false_alarm_rate: float
    rows: int
    prompts: int
    changed: int
    level: float = ALPHA


def regression(
    then: ArrayLike,
    now: ArrayLike,
    *,
    prompts: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
    direction: Direction = "maximize",
    margin: float = 0.0,
    seed: int = 0,
    draws: int = _DRAWS,
) -> Regression:
    """Test whether scores have got worse by more than a margin.

    The p-value is the larger one of sign flips of whole prompts and of Stringer's bound (see `paired_tests` and
    `tail_bound`). Under "nothing has changed" then and now can be exchanged row by row; so the false alarms are
    counted on differences whose signs are drawn.

    Args:
        then: Earlier scores [rows] or [rows, replicates].
        now: Later scores of the same rows; the number of replicates may differ.
        prompts: One label a row; rows with the same label are one unit. Default: all rows are distinct.
        bounds: Of the metric; without, the worst score seen stands for the worst one.
        direction: Of the metric.
        margin: The loss that is accepted, from 0 on.
        seed: Of all draws.
        draws: How often the signs are drawn for the false alarms.

    Raises:
        InputError: The rows do not match, or there are too few of them to show any loss.
    """
    sign = -1.0 if direction == "minimize" else 1.0
    earlier, later = (
        sign * score_rows_of(scores, name).mean(axis=1) for scores, name in ((then, "then"), (now, "now"))
    )
    if len(earlier) != len(later):
        raise InputError(f"{len(earlier)} rows then and {len(later)} now: compare the same rows")
    differences = earlier - later
    differences[np.abs(differences) <= 1e-12 * np.max(np.abs([earlier, later]))] = 0.0
    clusters = Clusters.of(differences, prompt_labels(prompts, len(differences)))
    if len(clusters) < FEWEST_CLUSTERS:
        raise InputError(
            f"{len(clusters)} different prompts are too few to show a loss; {FEWEST_CLUSTERS} are the least"
        )
    worst = worst_score(earlier, later, bounds, sign)
    gate = _Gate(margin=margin, room=float(later.mean() - worst), seed=seed)
    p_value = gate.p_value(clusters)
    return Regression(
        then=float(sign * earlier.mean()),
        now=float(sign * later.mean()),
        loss=clusters.mean,
        margin=margin,
        p_value=p_value,
        is_worse=p_value <= ALPHA,
        false_alarm_rate=_false_alarm_rate(gate, clusters, draws),
        rows=len(differences),
        prompts=len(clusters),
        changed=int(np.count_nonzero(differences)),
    )


@dataclass(frozen=True, slots=True)
class _Gate:
    """The test of one loss.

    Attributes:
        margin: The loss that is accepted.
        room: The most that one more row could have gained.
        seed: Of the sign flips.
    """

    margin: float
    room: float
    seed: int

    def p_value(self, clusters: Clusters) -> float:
        """One-sided, of "the loss is the margin or less"; losses are positive."""
        if clusters.mean <= self.margin:
            return 1.0
        unseen = mean_above_p_value(clusters.units, largest_loss=self.room, threshold=self.margin)
        return max(unseen, sign_flip_p_above(clusters, self.margin, seed=self.seed))

    def alarms(self, sums: Floats, counts: Floats) -> NDArray[np.bool_]:
        """Whether each of several samples of the same clusters raises the alarm, [samples].

        Args:
            sums: Sum of the losses of each cluster, [samples, clusters].
            counts: Rows of each cluster, [clusters].
        """
        is_loss = sums.sum(axis=1) / counts.sum() > self.margin
        units = sums * (len(counts) / counts.sum())
        unseen = mean_lower_bounds(units, largest_loss=self.room, level=ALPHA) > self.margin
        shown = sign_flip_p_values_above(sums, counts, self.margin, seed=self.seed) <= ALPHA
        found: NDArray[np.bool_] = is_loss & unseen & shown
        return found


def _false_alarm_rate(gate: _Gate, clusters: Clusters, draws: int) -> float:
    rng = np.random.Generator(np.random.PCG64(gate.seed))
    signs: Floats = rng.choice([-1.0, 1.0], size=(draws, len(clusters)))
    return float(gate.alarms(clusters.sums * signs, clusters.counts).mean())
