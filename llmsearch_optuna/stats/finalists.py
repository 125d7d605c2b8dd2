"""Which trials are scored again, and which of them wins: choices under noise, made on arrays of scores.

The best of many noisy scores is partly luck. So the winner is chosen among few finalists on fresh replicates, by
means that are shrunken as far as the noise demands, and its score comes with its error. No study enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.types import Direction

Floats = NDArray[np.float64]

_GRID = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """One finalist after it was scored again.

    Attributes:
        number: Its trial number.
        mean: Its mean over rows and replicates.
        shrunken: That mean drawn towards those of the other finalists, as far as noise explains the distance.
        error: Standard error of `shrunken` as an estimate of its score on these and other rows like them, beside
            what all finalists share (easy or hard rows).
        standard_error: Standard error of `mean`, rows included: how far it may be from the score on all such rows.
    """

    number: int
    mean: float
    shrunken: float
    error: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Who won, and on what the choice rested.

    Attributes:
        winner: Its trial number.
        finalists: All finalists, best shrunken mean first.
        spread: Estimated standard deviation of the finalists' true scores; near 0 means they are hardly different.
    """

    winner: int
    finalists: tuple[Finalist, ...]
    spread: float

    @property
    def score(self) -> float:
        """The winner's shrunken mean, by which it was chosen; it leans towards the other finalists."""
        return self.finalists[0].shrunken

    @property
    def standard_error(self) -> float:
        """The standard error of the winner's score, rows included."""
        return self.finalists[0].standard_error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "finalists": [asdict(f) for f in self.finalists]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Selection:
        """Read what to_json gave."""
        finalists = tuple(Finalist(**f) for f in values["finalists"])
        return cls(winner=values["winner"], finalists=finalists, spread=values["spread"])


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceSplit:
    """Where the spread of scores comes from.

    Attributes:
        rows_variance: Variance of the rows' true means: some rows are harder.
        sampling_variance: Variance of a row's score between replicates: decoding is random.
        rows: How many rows this rests on.
        replicates: How many replicates of each; with one the two parts cannot be told apart.
    """

    rows_variance: float
    sampling_variance: float | None
    rows: int
    replicates: int

    @property
    def sampling_share(self) -> float | None:
        """The share of sampling in the variance of a single score; None where it cannot be told."""
        if self.sampling_variance is None:
            return None
        total = self.rows_variance + self.sampling_variance
        return self.sampling_variance / total if total > 0 else 0.0

    def standard_error(self, rows: int, replicates: int) -> float:
        """Return the standard error of a mean over so many rows and replicates."""
        return math.sqrt((self.rows_variance + (self.sampling_variance or 0.0) / replicates) / rows)

    @property
    def advice(self) -> str:
        """One sentence: do more rows or more replicates help?"""
        share = self.sampling_share
        if share is None:
            return "With one replicate a row, spread between rows and chance in decoding cannot be told apart."
        if self.rows_variance + (self.sampling_variance or 0.0) == 0:
            return "All scores are alike."
        now = self.standard_error(self.rows, self.replicates)
        doubled_replicates = self.standard_error(self.rows, 2 * self.replicates)
        saved = 1 - doubled_replicates / now if now > 0 else 0.0
        helps = "more replicates help as well" if saved >= 0.1 else "more rows help, more replicates hardly do"
        return (
            f"{share:.0%} of the variance of a score is chance in decoding, the rest lies in the rows: twice the rows "
            f"would cut the error by 29%, twice the replicates by {saved:.0%}; {helps}."
        )


def choose_finalists(
    values: Mapping[int, float], *, direction: Direction, always: Sequence[int] = (), k: int = 3
) -> tuple[int, ...]:
    """Choose who is scored again.

    Args:
        values: Trial number -> value, of complete trials only: pruned ones never win.
        direction: ``"maximize"`` or ``"minimize"``.
        always: Trials that are finalists in any case where they are complete: the baseline and greedy.
        k: How many of the best to take, those of `always` not counted.

    Returns:
        Trial numbers: those of `always`, then the best, best first (ties: the earlier trial).
    """
    sign = 1.0 if direction == "minimize" else -1.0
    fixed = tuple(dict.fromkeys(number for number in always if number in values))
    ranked = sorted(values, key=lambda number: (sign * values[number], number))
    return fixed + tuple(number for number in ranked if number not in fixed)[:k]


def pick_winner(scores: Mapping[int, ArrayLike], *, direction: Direction, baseline: int = 0) -> Selection:
    """Choose the winner among finalists that were scored again on the same rows.

    Empirical Bayes, in the way of James and Stein. What all finalists share (a row is hard for everybody) is taken
    out first; what is left of a finalist's mean has an error that its own rows show. The true scores are taken to
    spread normally around their common mean; how widely is not known and is averaged over (flat on the standard
    deviation, as with the eight schools), so that the means shrink much when they hardly differ more than
    their errors, and never quite to one point. A noisy finalist shrinks more than a steady one: a lucky maximum
    does not win by luck alone. Ties go to the baseline, then to the earlier trial.

    Args:
        scores: Trial number -> [rows] or [rows, replicates], all of the same rows; replicates may differ.
        direction: ``"maximize"`` or ``"minimize"``.
        baseline: The baseline's trial number.

    Raises:
        InputError: There is no finalist, or they were scored on different numbers of rows.
    """
    if not scores:
        raise InputError("there is no finalist: no trial is complete")
    numbers = list(scores)
    tables = [_table(scores[number]) for number in numbers]
    if len({len(table) for table in tables}) > 1:
        raise InputError(f"finalists were scored on {[len(table) for table in tables]} rows; they must be the same")
    row_means = np.stack([table.mean(axis=1) for table in tables])  # [finalists, rows]
    means = row_means.mean(axis=1)
    shrunken, errors, spread = _shrink(means, _own_variances(row_means))
    own_errors = _standard_errors(row_means)
    sign = 1.0 if direction == "minimize" else -1.0
    order = sorted(
        range(len(numbers)), key=lambda i: (sign * round(float(shrunken[i]), 12), numbers[i] != baseline, numbers[i])
    )
    finalists = tuple(
        Finalist(
            number=numbers[i],
            mean=float(means[i]),
            shrunken=float(shrunken[i]),
            error=float(errors[i]),
            standard_error=float(own_errors[i]),
        )
        for i in order
    )
    return Selection(winner=finalists[0].number, finalists=finalists, spread=spread)


def split_variance(scores: ArrayLike) -> VarianceSplit:
    """Split the spread of one configuration's scores into rows and sampling (one-way analysis of variance).

    Args:
        scores: [rows, replicates], or [rows] where there is one replicate.
    """
    table = _table(scores)
    rows, replicates = table.shape
    row_means = table.mean(axis=1)
    between = float(row_means.var(ddof=1)) if rows > 1 else 0.0
    if replicates == 1:
        return VarianceSplit(rows_variance=between, sampling_variance=None, rows=rows, replicates=1)
    within = float(table.var(axis=1, ddof=1).mean())
    return VarianceSplit(
        rows_variance=max(0.0, between - within / replicates),
        sampling_variance=within,
        rows=rows,
        replicates=replicates,
    )


def _own_variances(row_means: Floats) -> Floats:
    """Variance of each finalist's mean that is its own: without what the rows do to all of them, [finalists].

    With r_i the finalist's row scores minus the row's mean over finalists, Var(r_i) = (1 - 2/k) v_i + sum(v) / k²
    when the own parts are independent; solved for v_i. With two finalists only the sum can be known.
    """
    count, rows = row_means.shape
    if count == 1 or rows == 1:
        return np.zeros(count)
    observed = (row_means - row_means.mean(axis=0)).var(axis=1, ddof=1)
    total = float(observed.sum()) / (1 - 1 / count)
    own: Floats
    if count == 2:
        own = np.full(2, total / 2)
    else:
        own = np.maximum((observed - total / count**2) / (1 - 2 / count), 0.1 * total / count)
    own /= rows
    return own


def _shrink(means: Floats, variances: Floats) -> tuple[Floats, Floats, float]:
    """Return posterior means and standard deviations [finalists], and the spread of true scores."""
    width = float(means.max() - means.min())
    if width == 0 or not np.any(variances > 0):
        return means.copy(), np.sqrt(variances), float(means.std(ddof=1)) if len(means) > 1 else 0.0
    variances = np.maximum(variances, 1e-6 * float(variances.max()))
    spreads = np.linspace(0, 2 * width + 2 * math.sqrt(float(variances.max())), _GRID)[:, None]  # [grid, 1]
    weights = 1 / (spreads**2 + variances)  # [grid, finalists]
    centres = (weights @ means / weights.sum(axis=1))[:, None]
    log_likelihood = 0.5 * (
        np.log(weights).sum(axis=1) - np.log(weights.sum(axis=1)) - (weights * (means - centres) ** 2).sum(axis=1)
    )
    posterior = np.exp(log_likelihood - log_likelihood.max())
    posterior /= posterior.sum()
    keep = spreads**2 * weights  # how much of its own distance a mean keeps
    each = centres + keep * (means - centres)
    shrunken = posterior @ each
    within = keep * variances + (1 - keep) ** 2 / weights.sum(axis=1)[:, None]
    errors = np.sqrt(posterior @ (within + (each - shrunken) ** 2))
    return shrunken, errors, float(posterior @ spreads[:, 0])


def _standard_errors(row_means: Floats) -> Floats:
    count, rows = row_means.shape
    if rows == 1:
        return np.zeros(count)
    errors: Floats = row_means.std(axis=1, ddof=1) / math.sqrt(rows)
    return errors


def _table(scores: ArrayLike) -> Floats:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0 or not np.all(np.isfinite(table)):
        raise InputError(f"scores must be finite numbers, [rows] or [rows, replicates]; got shape {table.shape}")
    return table
