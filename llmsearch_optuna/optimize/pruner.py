"""The paired pruner: when a trial can no longer become the best one.

A trial is compared with the incumbent (the best complete trial it may know of) row by row, at fixed looks, on the
same rows in the same order. Pure functions of score arrays: no study, no decoding, no clock may enter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from optuna.pruners import BasePruner, WilcoxonPruner
from scipy import special, stats

from llmsearch_optuna.errors import InputError, is_one_of, short
from llmsearch_optuna.types import Bounds, Direction

Rule = Literal["curtailment", "predictive", "exact_paired", "running"]

_JEFFREYS = 0.5
_FEWEST_BLOCKS = 4

_FAILING = 0.25
"""The incumbent fails on rows with at most so much of its median score, counted from the lowest one."""

_RARE = 0.2
"""Where the incumbent fails on more rows than this, the rows seen hold some, and t knows what they do."""

_LIFTED = 0.3
"""A failing row is lifted by a trial that gains more than so much of what can be gained on it."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Why a trial was stopped.

    Attributes:
        rule: Which rule stopped it.
        reason: One sentence with the numbers, for people.
        rows: How many of its rows had been seen.
        chance: The predicted chance of ending above the incumbent (0 for curtailment, which is certain).
        level: The chance below which this look prunes.
    """

    rule: Rule
    reason: str
    rows: int
    chance: float
    level: float


@dataclass(frozen=True, kw_only=True)
class PairedPruner:
    """Stops trials that will not end above the incumbent.

    Three rules, in this order. *Curtailment* (bounded scores): even the best score on every remaining row would not
    lift the trial above the incumbent; exact, costs no risk. *Exact paired* (scores that only take the two ends of
    their bounds): on rows where the incumbent failed the trial can only win, on the others only lose; how many of
    the remaining ones it will win and lose is beta-binomial (Jeffreys prior, counted on the rows seen), and the
    chance of ending above is an exact sum. Rows on which both score alike decide nothing by themselves. *Predictive*
    (all other scores): the mean of the remaining paired differences follows a t distribution around the seen one,
    which gives the chance of ending above; never asked when the differences seen do not vary.

    ``risk`` is the chance of dropping what would have been the winner, for the hardest winner there is: one that
    would have ended just above the incumbent. It is spent over the looks, look j getting a share proportional to
    1/j, so that the early looks, which save the most, get the most; the shares add up to ``risk``. A winner with a
    clear lead is lost far more rarely. The t rule keeps this promise for roughly symmetric differences; with heavy
    tails (log-normal scores) a narrow winner was lost up to twice as often in simulation. Rows on which the incumbent
    fails are a kind of their own where scores have bounds: a setting that costs a little everywhere and ends the loops
    on one row in twenty was lost in 47 to 50 % of simulated runs by the t rule alone, and in 2 % at most with what
    the failing rows that are left could still bring. Without bounds there is no such guard.

    Bounds come from the metric: the built-in ones declare them, a user's metric may. Without bounds there is no
    curtailment, and scores count as two-valued when all scores seen of both trials are 0 or 1.

    Attributes:
        risk: See above, between 0 and 1.
        min_rows: The rows of the first look; nothing is pruned before.
        step: Rows between two looks.
        knows_failing_rows: Whether rows on which the incumbent fails are a kind of their own. Studies that were
            started before the pruner knew them go on without.

    Raises:
        InputError: For a risk outside (0, 1), fewer than 4 first rows, or a step below 1.
    """

    risk: float = 0.02
    min_rows: int = 8
    step: int = 8
    knows_failing_rows: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.risk < 1:
            raise InputError(f"risk={short(self.risk)} is no chance between 0 and 1; 0.02 is a good value")
        if self.min_rows < 4:
            raise InputError(f"min_rows={short(self.min_rows)} is too few rows to judge a trial by; use at least 4")
        if self.step < 1:
            raise InputError(f"step={short(self.step)} must be at least 1")

    def looks(self, n_total: int) -> tuple[int, ...]:
        """Return the row counts at which a trial reports, the last one being ``n_total`` (where nothing is pruned)."""
        return (*self._pruning_looks(n_total), n_total)

    def level(self, rows: int, n_total: int) -> float:
        """Return the share of ``risk`` that the look at ``rows`` may spend; 0 where there is no look to prune at."""
        looks = self._pruning_looks(n_total)
        if rows not in looks:
            return 0.0
        return self.risk / (looks.index(rows) + 1) / _harmonic(len(looks))

    def decide(
        self,
        scores: ArrayLike,
        incumbent_scores: ArrayLike,
        n_total: int,
        *,
        bounds: Bounds | None,
        direction: Direction,
        level: float | None = None,
        noise: float = 0.0,
    ) -> Prune | None:
        """Judge a trial after its first rows.

        Args:
            scores: The trial's scores, [k], first rows of the study's permutation.
            incumbent_scores: The incumbent's scores on all rows, [n_total], same order.
            n_total: The rows of a full trial.
            bounds: Lowest and highest possible score, where known.
            direction: ``"maximize"`` or ``"minimize"``.
            level: The chance below which this look prunes; by default what `level` says of so many rows. To be given
                where rows of the permutation do not count, so that there are fewer scores than rows at a look.
            noise: Variance of the difference between two scores of one row under the same configuration and seed, where
                an engine does not repeat itself. The better trial is then the one that is better on average over what
                it may draw: scores seen are no certainty, and the last look has an error, too.

        Returns:
            The reason to stop, or None: go on. Always None when k is not one of the looks.

        Raises:
            InputError: For scores that are not finite or lie outside the bounds.
        """
        trial = _as_scores(scores, bounds)
        incumbent = _as_scores(incumbent_scores, bounds)
        if len(incumbent) != n_total:
            raise InputError(f"the incumbent has {len(incumbent)} scores, a full trial has {n_total}")
        rows = len(trial)
        level = self.level(rows, n_total) if level is None else level
        if level == 0.0 or rows < 2:
            return None
        if direction == "minimize":
            trial, incumbent = -trial, -incumbent
            bounds = (-bounds[1], -bounds[0]) if bounds else None
        if bounds and (stop := _curtailed(trial, incumbent, bounds[1], level, direction, noise)):
            return stop
        ends = bounds or ((-1.0, 0.0) if direction == "minimize" else (0.0, 1.0))
        if _two_valued(trial, ends) and _two_valued(incumbent, ends):
            stop = _exact_paired(trial > ends[0], incumbent > ends[0], level)
            if stop is None or noise == 0.0:
                return stop
        return _predictive(trial, incumbent, level, bounds if self.knows_failing_rows else None, noise)

    def decide_running(
        self,
        running: Sequence[float],
        incumbent_running: Sequence[float],
        n_total: int,
        *,
        direction: Direction,
    ) -> Prune | None:
        """Judge a trial by its running values, for metrics that score all rows at once.

        What each block of rows between two looks contributed is read off the running values as if the metric were
        a mean, and the predictive rule is applied to the blocks. With few blocks it is cautious: never before the
        fourth look.

        Args:
            running: The trial's value at the looks so far.
            incumbent_running: The incumbent's value at the same looks (later ones are ignored).
            n_total: The rows of a full trial.
            direction: ``"maximize"`` or ``"minimize"``.
        """
        seen = len(running)
        looks = self._pruning_looks(n_total)
        if not _FEWEST_BLOCKS <= seen <= len(looks) or len(incumbent_running) < seen:
            return None
        sign = -1.0 if direction == "minimize" else 1.0
        ends = np.asarray(looks[:seen], dtype=np.float64)
        lead = sign * (_as_scores(running, None) - _as_scores(incumbent_running[:seen], None))
        sizes = np.diff(ends, prepend=0.0)
        blocks = np.diff(ends * lead, prepend=0.0) / sizes
        spread = math.sqrt(float(np.sum(sizes * (blocks - lead[-1]) ** 2)) / (seen - 1))
        rows, level = looks[seen - 1], self.level(looks[seen - 1], n_total)
        chance = _chance_above(float(lead[-1]), spread, rows, n_total, degrees=seen - 1)
        if chance >= level:
            return None
        reason = (
            f"after {rows} of {n_total} rows its value is {abs(lead[-1]):.4g} behind the incumbent's; "
            f"chance of ending ahead {_percent(chance)}"
        )
        return Prune("running", reason, rows, chance, level)

    def _pruning_looks(self, n_total: int) -> range:
        return range(self.min_rows, n_total, self.step)


@functools.cache
def _harmonic(count: int) -> float:
    """Return 1 + 1/2 + … + 1/count."""
    return sum(1.0 / j for j in range(1, count + 1))


def _curtailed(
    trial: NDArray[np.float64],
    incumbent: NDArray[np.float64],
    best: float,
    level: float,
    direction: Direction,
    noise: float,
) -> Prune | None:
    """Stop when the best score on all remaining rows would at most draw level (a tie stays with the earlier trial)."""
    rows, n_total = len(trial), len(incumbent)
    reachable = (float(trial.sum()) + (n_total - rows) * best) / n_total
    target = float(incumbent.mean())
    luck = float(stats.norm.isf(level)) * math.sqrt(noise / n_total) if noise else 0.0
    if reachable + luck > target + 1e-12 * max(1.0, abs(target)):
        return None
    sign = -1.0 if direction == "minimize" else 1.0
    reason = (
        f"after {rows} of {n_total} rows it can reach {sign * reachable:.4g} at best; "
        f"the incumbent has {sign * target:.4g}"
    )
    return Prune("curtailment", reason, rows, 0.0, level)


def _exact_paired(trial: NDArray[np.bool_], incumbent: NDArray[np.bool_], level: float) -> Prune | None:
    rows, n_total = len(trial), len(incumbent)
    seen, rest = incumbent[:rows], incumbent[rows:]
    wins, losses = int(np.sum(trial & ~seen)), int(np.sum(~trial & seen))
    lost_rows, won_rows = int(np.sum(~seen)), int(np.sum(seen))
    more_wins = _beta_binomial(int(np.sum(~rest)), wins, lost_rows - wins)
    more_losses = _beta_binomial(int(np.sum(rest)), losses, won_rows - losses)
    # P(more wins - more losses > losses - wins), summed over the number of further losses
    above = np.append(np.cumsum(more_wins[::-1])[::-1], 0.0)  # above[w] = P(more wins >= w)
    needed = np.clip(losses - wins + 1 + np.arange(len(more_losses)), 0, len(above) - 1)
    chance = float(min(1.0, more_losses @ above[needed]))
    if chance >= level:
        return None
    reason = (
        f"after {rows} of {n_total} rows it won {wins} and lost {losses} of those on which it differs from the "
        f"incumbent; chance of ending ahead {_percent(chance)}"
    )
    return Prune("exact_paired", reason, rows, chance, level)


def _beta_binomial(n: int, successes: int, failures: int) -> NDArray[np.float64]:
    """Return the predictive probabilities of 0 … n further successes, [n + 1], under Jeffreys' prior."""
    a, b = successes + _JEFFREYS, failures + _JEFFREYS
    x = np.arange(n + 1)
    log_choose = special.gammaln(n + 1) - special.gammaln(x + 1) - special.gammaln(n - x + 1)
    return np.asarray(np.exp(log_choose + special.betaln(a + x, b + n - x) - special.betaln(a, b)))


def _predictive(
    trial: NDArray[np.float64],
    incumbent: NDArray[np.float64],
    level: float,
    bounds: Bounds | None,
    noise: float,
) -> Prune | None:
    rows, n_total = len(trial), len(incumbent)
    differences = trial - incumbent[:rows]
    lead, spread = float(differences.mean()), float(differences.std(ddof=1))
    chance = _chance_above(lead, spread, rows, n_total, degrees=rows - 1, noise=noise)
    if chance < level and bounds:
        chance = max(chance, _chance_by_rescue(trial, incumbent, bounds))
    if chance >= level:
        return None
    reason = (
        f"after {rows} of {n_total} rows it is {abs(lead):.4g} a row behind the incumbent (spread {spread:.4g}); "
        f"chance of ending ahead {_percent(chance)}"
    )
    return Prune("predictive", reason, rows, chance, level)


def _chance_by_rescue(trial: NDArray[np.float64], incumbent: NDArray[np.float64], bounds: Bounds) -> float:
    """Return P(final mean difference > 0) where rows on which the incumbent fails are a kind of their own.

    A penalty that ends loops costs a little on every row and gains nearly all of the score on the few that loop. The
    rows seen may hold none of these, but the incumbent's scores say how many are left. How many of them the trial
    lifts is beta-binomial (Jeffreys prior, counted on those seen), each to the best score there is; the other rows
    are predicted by t as ever. 0.0 where the incumbent fails on no row that is left.
    """
    rows = len(trial)
    failing = incumbent <= bounds[0] + _FAILING * (float(np.median(incumbent)) - bounds[0])
    seen, left = failing[:rows], failing[rows:]
    others, others_left = int(np.sum(~seen)), int(np.sum(~left))
    if not np.any(left) or others < 2 or float(failing.mean()) > _RARE:
        return 0.0
    differences = trial[~seen] - incumbent[:rows][~seen]
    lifted = trial[seen] - incumbent[:rows][seen] > _LIFTED * (bounds[1] - incumbent[:rows][seen])
    more = _beta_binomial(int(np.sum(left)), int(np.sum(lifted)), int(np.sum(seen)) - int(np.sum(lifted)))
    gains = np.sort(bounds[1] - incumbent[rows:][left])[::-1]
    gained = np.concatenate([[0.0], np.cumsum(gains)]) + float(np.sum(trial[seen] - incumbent[:rows][seen]))
    total = float(differences.sum()) + gained  # [number lifted]: without the other rows that are left
    if not others_left:
        return float(more @ (total > 0))
    scale = float(differences.std(ddof=1)) * math.sqrt((others + others_left) / (others * others_left))
    distance = -total / others_left - float(differences.mean())
    chances = stats.t.sf(distance / scale, others - 1) if scale > 0 else (distance < 0).astype(np.float64)
    return float(more @ chances)


def _chance_above(lead: float, spread: float, rows: int, n_total: int, *, degrees: int, noise: float = 0.0) -> float:
    """Return P(final mean difference > 0), t-predictive.

    With k rows seen, the mean of the N-k others minus that of the seen ones is t-distributed (k-1 degrees of freedom)
    with scale s·sqrt(N / (k(N-k))); the final mean is positive when that exceeds -N·lead / (N-k). The statistic is
    independent of the final mean for normal differences, so this chance is also the error rate against a trial that
    would have ended level. 1.0 where the differences do not vary: nothing can be said then.
    """
    if spread <= 1e-12 * max(1.0, abs(lead)):
        return 1.0
    rest = n_total - rows
    # What other draws would have given on the rows seen is not known: `noise` stays however many rows there are.
    error = math.sqrt(spread**2 * rest / (rows * n_total) + noise / n_total)
    return float(stats.t.sf(-lead / error, degrees))


def _two_valued(scores: NDArray[np.float64], ends: Bounds) -> bool:
    return bool(np.all((scores == ends[0]) | (scores == ends[1])))


def _as_scores(values: ArrayLike, bounds: Bounds | None) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not np.all(np.isfinite(scores)):
        raise InputError(f"scores must be a flat list of finite numbers, got shape {scores.shape}: {scores!r}")
    if bounds and scores.size:
        slack = 1e-9 * max(1.0, abs(bounds[0]), abs(bounds[1]))
        if scores.min() < bounds[0] - slack or scores.max() > bounds[1] + slack:
            raise InputError(
                f"the metric declares bounds {bounds} but gave scores from {scores.min():.6g} to {scores.max():.6g}; "
                "correct the bounds or leave them out"
            )
    return scores


def _percent(chance: float) -> str:
    return f"{100 * chance:.2g} %" if chance >= 1e-4 else "below 0.01 %"


def make_pruner(pruner: Any) -> PairedPruner | BasePruner | None:
    """The pruner of this name, or the user's own; None prunes nothing.

    Args:
        pruner: ``"paired"``, ``"none"``, a PairedPruner, or an Optuna pruner.

    Raises:
        InputError: There is no such pruner, or it cannot read what trials report.
    """
    if isinstance(pruner, WilcoxonPruner):
        raise InputError(
            "pruner=WilcoxonPruner wants the score of one row at every step, and trials report the mean of the rows so "
            "far. Leave pruner= out: 'paired' compares trials row by row, too"
        )
    if isinstance(pruner, PairedPruner | BasePruner):
        return pruner
    if is_one_of(pruner, "paired"):
        return PairedPruner()
    if is_one_of(pruner, "none"):
        return None
    raise InputError(f"pruner={short(pruner)} is unknown; give 'paired', 'none' or an Optuna pruner")
