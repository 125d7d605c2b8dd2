"""What is believed of all configurations of a table from scores of some: a Gaussian process, and rows as a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

Floats = NDArray[np.float64]

LENGTHS = (0.15, 0.3, 0.6, 1.2)
"""Of the kernel, in the unit cube; the likeliest counts."""


@dataclass(frozen=True)
class Surrogate:
    """A Gaussian process with a Matern 5/2 kernel over points that are known beforehand.

    Attributes:
        kernels: Between all points, one for each of `LENGTHS`, [points, points].
    """

    kernels: tuple[Floats, ...]

    @classmethod
    def of(cls, points: Floats) -> Surrogate:
        """Return the process over points of the unit cube, [points, dimensions]."""
        squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
        distance = np.sqrt(5.0 * np.maximum(squares, 0.0))
        scaled = [distance / length for length in LENGTHS]
        return cls(tuple((1.0 + d + d**2 / 3.0) * np.exp(-d) for d in scaled))

    def predict(self, known: Sequence[int], values: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at all points.

        Args:
            known: Places of the points whose values are known.
            values: Of these.
            noise: The variance of each value.
        """
        centre, spread = values.mean(), max(float(values.std()), 1e-3)
        scaled, variance = (values - centre) / spread, noise / spread**2
        fits = [_fitted(kernel[np.ix_(known, known)], scaled, variance) for kernel in self.kernels]
        place = int(np.argmax([likelihood for likelihood, _, _ in fits]))
        _, factor, weights = fits[place]
        across = self.kernels[place][:, list(known)]
        solved = linalg.solve_triangular(factor, across.T, lower=True, check_finite=False)
        left = np.maximum(1.0 - (solved**2).sum(axis=0), 1e-9)
        return centre + spread * (across @ weights), spread * np.sqrt(left)


def _fitted(kernel: Floats, values: Floats, variance: Floats) -> tuple[float, Floats, Floats]:
    factor = linalg.cholesky(kernel + np.diag(variance + 1e-6), lower=True, check_finite=False)
    weights = linalg.cho_solve((factor, True), values, check_finite=False)
    likelihood = -0.5 * float(values @ weights) - float(np.log(np.diag(factor)).sum())
    return likelihood, factor, weights


def expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Return how much better than ``best`` each is expected to be, counting nothing where it is worse."""
    z = (mean - best) / deviation
    found: Floats = deviation * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    return found


def additive_means(scores: Sequence[Floats], rounds: int = 8) -> tuple[Floats, Floats]:
    """Return each configuration's mean over all rows, and its variance, where a score is configuration + row + chance.

    Args:
        scores: Of each configuration, on its first rows; the rows are the same for all.
        rounds: Of alternating least squares; rows are pulled towards the mean as by half an observation.
    """
    seen = np.array([len(of) for of in scores])
    table = np.zeros((len(scores), int(seen.max())))
    for place, of in enumerate(scores):
        table[place, : len(of)] = of
    there = (np.arange(table.shape[1]) < seen[:, None]).astype(np.float64)
    counts = there.sum(axis=0)
    rows = np.zeros(table.shape[1])
    own = np.zeros(len(scores))
    for _ in range(rounds):
        own = ((table - rows) * there).sum(axis=1) / seen
        rows = ((table - own[:, None]) * there).sum(axis=0) / (counts + 0.5)
    left = (table - own[:, None] - rows) * there
    freedom = float(there.sum()) - len(scores) - table.shape[1]
    variance = float((left**2).sum()) / freedom if freedom > 5 else float(table[there > 0].var())
    return own + rows.mean(), (variance + 1e-4) / seen
