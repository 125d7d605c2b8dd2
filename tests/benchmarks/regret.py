"""Which way to search comes nearest to the best configuration with so many tokens?

    python -m tests.benchmarks.regret [--seeds 200] [--methods "ours;random"]

On the tables in tests/benchmarks/regret/ (see `regret_table`). A seed draws 60 of a table's rows, on which is searched;
regret is how much worse what is recommended is than the best configuration, on all rows. A budget of 1 is what 40
configurations cost on average.
"""

from __future__ import annotations

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import optuna
from numpy.typing import NDArray

from tests.benchmarks.regret_methods import ON_REQUEST, Purse, methods
from tests.benchmarks.regret_table import TABLES, Table

Floats = NDArray[np.float64]

SEARCH_ROWS, TRIALS = 60, 40
SHARES = (0.1, 0.2, 1 / 3, 0.5, 0.75, 1.0)
"""Of the budget, at which is looked."""


def whole_budget(table: Table) -> int:
    """Tokens of so many configurations on the search rows, on average."""
    return round(float(table.tokens.mean()) * SEARCH_ROWS * TRIALS)


def regrets(table: Table, method: str, seed: int) -> Floats:
    """Return the regret of one search at each of `SHARES`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = np.random.default_rng(seed).permutation(table.scores.shape[1])[:SEARCH_ROWS]
    purse = Purse(table, rows, whole_budget(table))
    dict(methods())[method](purse, seed)
    return regret_at([share * purse.budget for share in SHARES], purse)


def regret_at(budgets: list[float], purse: Purse) -> Floats:
    """Return the regret of what was recommended last within each budget; at first the first configuration is."""
    true = purse.table.scores.mean(axis=1)
    found = []
    for budget in budgets:
        recommended = [configuration for spent, configuration in purse.trace if spent <= budget]
        # Nothing is known yet: any configuration is as good as another.
        found.append(float(true.max() - (true[recommended[-1]] if recommended else true.mean())))
    return np.array(found)


def lines(name: str, table: Table, seeds: int, wanted: list[str], pool: ProcessPoolExecutor) -> list[str]:
    """Return a table's lines, one a method."""
    made = []
    for method in wanted:
        found = np.array(list(pool.map(partial(regrets, table, method), range(seeds), chunksize=10)))
        mean, error = found.mean(axis=0), found.std(axis=0) / np.sqrt(seeds)
        cells = " | ".join(f"{m:.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True))
        made.append(f"| {name} | {method} | {cells} |")
    return made


def main() -> None:
    """Print a line for each table and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--methods", help="with semicolons between; all but the slow ones by default")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    named = given.methods.split(";") if given.methods else [name for name, _ in methods() if name not in ON_REQUEST]
    wanted = [name for name, _ in methods() if name in named]
    print(f"| table | method | {' | '.join(f'{share:.2f}' for share in SHARES)} |\n|{'---|' * (len(SHARES) + 2)}")
    with ProcessPoolExecutor(given.processes) as pool:
        for path in sorted(TABLES.glob("*.npz")):
            for line in lines(path.stem, Table.load(path), given.seeds, wanted, pool):
                print(line, flush=True)


if __name__ == "__main__":
    main()
