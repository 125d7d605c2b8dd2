"""How often `check` raises an alarm although nothing has changed, after studies that ended "better".

What is recommended was chosen for a good score on the very rows that it is scored on again, so it falls back. Prints
the table of docs/verdict.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.regression import ALPHA, regression

Floats = NDArray[np.float64]

REPLICATES = 3
MOST_TRIES = 3000


def scores(rng: np.random.Generator, kind: str, merit: Floats) -> Floats:
    """Scores [rows, replicates] of rows with these means."""
    shape = (len(merit), REPLICATES)
    if kind == "0/1":
        return rng.binomial(1, np.clip(merit, 0, 1)[:, None], shape).astype(np.float64)
    return np.clip(merit[:, None] + rng.normal(0, 0.15, shape), 0, 1)


def p_values(rng: np.random.Generator, kind: str, rows: int, gain: float, studies: int) -> Iterator[tuple[float, int]]:
    """The p-value of a check after each study that ended "better", and how many studies that took."""
    tried = 0
    for _ in range(studies):
        while tried < MOST_TRIES:
            tried += 1
            merit = rng.beta(1, 1, rows) if kind == "0/1" else rng.normal(0.4, 0.15, rows)
            then = scores(rng, kind, merit + gain)
            if compare(scores(rng, kind, merit), then, bounds=(0, 1)).answer == "better":
                break
        else:
            return
        now = scores(rng, kind, merit + gain)
        yield regression(then, now, bounds=(0, 1), draws=1).p_value, tried


def main() -> None:
    """Print one line a world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=150)
    studies = parser.parse_args().studies
    rng = np.random.Generator(np.random.PCG64(0))
    print('| scores | rows | true gain | studies that ended "better" | false alarms |\n|---|---|---|---|---|')
    for kind in ("0/1", "continuous"):
        for rows in (30, 100):
            for gain in (0.05, 0.1):
                found = list(p_values(rng, kind, rows, gain, studies))
                rate = float(np.mean([p_value <= ALPHA for p_value, _ in found]))
                error = math.sqrt(rate * (1 - rate) / len(found))
                better = len(found) / found[-1][1]
                print(f"| {kind} | {rows} | {gain} | {better:.0%} | {rate:.1%} ± {error:.1%} |", flush=True)


if __name__ == "__main__":
    main()
