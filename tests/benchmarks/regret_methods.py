"""Ways to search a table of configurations, each an anytime search: what it recommends after how many tokens.

Every method sees the same rows in the same order, pays for each row's generated tokens, and suggests points of the
continuous space, of which the nearest configuration that it has not tried is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from scipy import linalg, stats

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.samplers import STARTUP_TRIALS
from tests.benchmarks.regret_table import SEARCHED, Table

Floats = NDArray[np.float64]


@dataclass
class Purse:
    """A table behind a till: scores are bought by their tokens.

    Attributes:
        table: What is searched.
        rows: Of the table, in the order in which they are decoded.
        budget: Tokens that may be spent.
        spent: Tokens so far.
        trace: After how many tokens which configuration was recommended; the last line holds to the end.
    """

    table: Table
    rows: NDArray[np.int64]
    budget: int
    spent: int = 0
    trace: list[tuple[int, int]] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether there is money and something to buy."""
        return self.spent < self.budget and len(self.tried) < len(self.table.points)

    def buy(self, configuration: int, first: int, last: int) -> Floats:
        """Return the scores of a configuration on the rows from ``first`` to before ``last``."""
        self.tried.add(configuration)
        rows = self.rows[first:last]
        self.spent += int(self.table.tokens[configuration, rows].sum())
        return self.table.scores[configuration, rows]

    def recommend(self, configuration: int) -> None:
        """Say what would be taken if the search ended here."""
        self.trace.append((self.spent, configuration))

    def nearest(self, point: Floats) -> int:
        """Return the configuration nearest to a point of the unit cube that has not been tried."""
        distance = ((unit_cube(self.table.points) - point) ** 2).sum(axis=1)
        distance[list(self.tried)] = np.inf
        return int(distance.argmin())


def unit_cube(points: Floats) -> Floats:
    """Scale values to 0 to 1, logarithmically where the distribution is."""
    columns = []
    for values, distribution in zip(points.T, SEARCHED.values(), strict=True):
        low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
        if isinstance(distribution, IntDistribution) and distribution.log:
            values, low, high = np.log(values), np.log(low), np.log(high)
        columns.append((values - low) / (high - low))
    return np.stack(columns, axis=1)


def params_of(table: Table, configuration: int) -> dict[str, float | int]:
    """Return a configuration as Optuna stores it."""
    return {
        name: int(value) if isinstance(distribution, IntDistribution) else float(value)
        for (name, distribution), value in zip(SEARCHED.items(), table.points[configuration], strict=True)
    }


Method = Callable[[Purse, int], None]


def searched(make: Callable[[int], BaseSampler], pruner: PairedPruner | None) -> Method:
    """A sampler of Optuna with our pruner, or with none: a search as ours, one trial after the other."""

    def run(purse: Purse, seed: int) -> None:
        study = optuna.create_study(direction="maximize", sampler=make(seed))
        complete: dict[int, Floats] = {}
        total = len(purse.rows)
        while purse.is_open:
            configuration = _suggested(study, purse)
            incumbent = max(complete, key=lambda c: complete[c].mean(), default=None)
            scores = np.empty(0)
            for look in (total,) if pruner is None or incumbent is None else pruner.looks(total):
                scores = np.concatenate([scores, purse.buy(configuration, len(scores), look)])
                if (
                    pruner is not None
                    and incumbent is not None
                    and look < total
                    and pruner.decide(scores, complete[incumbent], total, bounds=(0.0, 1.0), direction="maximize")
                ):
                    break
            is_whole = len(scores) == total
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if is_whole else TrialState.PRUNED,
                    params=params_of(purse.table, configuration),
                    distributions=dict(SEARCHED),
                    value=float(scores.mean()),
                    intermediate_values={} if is_whole else {len(scores): float(scores.mean())},
                )
            )
            if is_whole:
                complete[configuration] = scores
                purse.recommend(max(complete, key=lambda c: complete[c].mean()))

    return run


def pruned_by_optuna(make: Callable[[int, int], tuple[BaseSampler, optuna.pruners.BasePruner]], step: int) -> Method:
    """A sampler and a pruner of Optuna, as a user's own loop has them: the running mean every so many rows.

    Args:
        make: Of a seed and the rows.
        step: Rows between two reports; the Wilcoxon pruner is told each row's score instead.
    """

    def run(purse: Purse, seed: int) -> None:
        total = len(purse.rows)
        sampler, pruner = make(seed, total)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        by_row = isinstance(pruner, optuna.pruners.WilcoxonPruner)
        complete: dict[int, float] = {}
        while purse.is_open:
            configuration = _suggested(study, purse)
            study.enqueue_trial(params_of(purse.table, configuration))
            trial = study.ask(dict(SEARCHED))
            scores = np.empty(0)
            while len(scores) < total:
                bought = purse.buy(configuration, len(scores), min(total, len(scores) + step))
                for place, score in enumerate(bought, len(scores)):
                    if by_row:
                        trial.report(float(score), place)
                scores = np.concatenate([scores, bought])
                if not by_row:
                    trial.report(float(scores.mean()), len(scores))
                if len(scores) < total and trial.should_prune():
                    break
            if len(scores) == total:
                study.tell(trial, float(scores.mean()))
                complete[configuration] = float(scores.mean())
                purse.recommend(max(complete, key=complete.__getitem__))
            else:
                study.tell(trial, state=TrialState.PRUNED)

    return run


def halving(rungs: Sequence[int], keep: int) -> Method:
    """Successive halving on rows (Jamieson and Talwalkar 2016): many at random on few rows, the best on more."""

    def run(purse: Purse, seed: int) -> None:
        rng = np.random.default_rng(seed)
        total = len(purse.rows)
        best: tuple[float, int] | None = None
        while purse.is_open:
            free = np.setdiff1d(np.arange(len(purse.table.points)), list(purse.tried))
            group = [int(c) for c in rng.permutation(free)[: keep ** len(rungs)]]
            scores: dict[int, Floats] = {c: np.empty(0) for c in group}
            for rung in (*rungs, total):
                for c in group:
                    scores[c] = np.concatenate([scores[c], purse.buy(c, len(scores[c]), min(rung, total))])
                group = sorted(group, key=lambda c: -scores[c].mean())[: max(1, len(group) // keep)]
            top = (float(scores[group[0]].mean()), group[0])
            best = top if best is None else max(best, top)
            purse.recommend(best[1])

    return run


def token_aware(fidelities: Sequence[int]) -> Method:
    """Expected improvement by token, on few rows first: the idea of EcoTune (Xu et al., EMNLP 2025) on rows.

    A Gaussian process over parameters and the share of rows gives the improvement that is expected at all rows; what
    has the most of it for each token that it is expected to cost is decoded, on the fewest rows first, and again on
    more rows while it stays the most promising.
    """

    def run(purse: Purse, seed: int) -> None:
        rng = np.random.default_rng(seed)
        total = len(purse.rows)
        steps = [*fidelities, total]
        cube = unit_cube(purse.table.points)
        scores: dict[int, Floats] = {}
        order = [int(c) for c in rng.permutation(len(cube))]
        while purse.spent < purse.budget:
            if len(scores) < STARTUP_TRIALS:
                chosen = order[len(scores)]
            else:
                chosen = _most_by_token(purse, cube, scores, steps)
                if chosen is None:
                    return
            done = len(scores.get(chosen, ()))
            last = next(step for step in steps if step > done)
            scores[chosen] = np.concatenate([scores.get(chosen, np.empty(0)), purse.buy(chosen, done, last)])
            most = max(map(len, scores.values()))
            purse.recommend(max((c for c in scores if len(scores[c]) == most), key=lambda c: scores[c].mean()))

    return run


def _most_by_token(purse: Purse, cube: Floats, scores: Mapping[int, Floats], steps: Sequence[int]) -> int | None:
    total = steps[-1]
    known = list(scores)
    means = np.array([scores[c].mean() for c in known])
    noise = np.array([(scores[c].var() + 0.01) / len(scores[c]) for c in known])
    mean, deviation = gaussian_process(cube[known], means, noise, cube)
    best = max((scores[c].mean() for c in known if len(scores[c]) == total), default=float(means.max()))
    z = (mean - best) / deviation
    improvement = deviation * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    cost_a_row = {c: float(purse.table.tokens[c, purse.rows[: len(scores[c])]].mean()) for c in known}
    usual = float(np.mean(list(cost_a_row.values())))
    done = np.array([len(scores.get(c, ())) for c in range(len(cube))])
    following = np.array([next((step for step in steps if step > d), 0) for d in done])
    cost = (following - done) * np.array([cost_a_row.get(c, usual) for c in range(len(cube))])
    value = np.where(cost > 0, improvement / np.maximum(cost, 1.0), -1.0)
    chosen = int(value.argmax())
    return chosen if value[chosen] >= 0 else None


def gaussian_process(points: Floats, values: Floats, noise: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation at points, with a Matern 5/2 kernel whose length fits the values best.

    Args:
        points: [known, dimensions], in the unit cube.
        values: Of these.
        noise: The variance of each value.
        at: Where it is wanted, [points, dimensions].
    """
    centre, spread = values.mean(), max(float(values.std()), 1e-3)
    scaled, variance = (values - centre) / spread, noise / spread**2
    fits = [(_fit(points, scaled, variance, length), length) for length in (0.15, 0.3, 0.6, 1.2)]
    (_, factor, weights), length = max(fits, key=lambda fit: fit[0][0])
    across = _matern(at, points, length)
    solved = linalg.solve_triangular(factor, across.T, lower=True)
    left = np.maximum(1.0 - (solved**2).sum(axis=0), 1e-9)
    return centre + spread * (across @ weights), spread * np.sqrt(left)


def _fit(points: Floats, values: Floats, variance: Floats, length: float) -> tuple[float, Floats, Floats]:
    kernel = _matern(points, points, length) + np.diag(variance + 1e-6)
    factor = linalg.cholesky(kernel, lower=True)
    weights = linalg.cho_solve((factor, True), values)
    likelihood = -0.5 * float(values @ weights) - float(np.log(np.diag(factor)).sum())
    return likelihood, factor, weights


def _matern(one: Floats, other: Floats, length: float) -> Floats:
    distance = np.sqrt(5.0 * np.maximum(((one[:, None] - other[None]) ** 2).sum(axis=2), 0.0)) / length
    found: Floats = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    return found


def _suggested(study: optuna.Study, purse: Purse) -> int:
    trial = study.ask(dict(SEARCHED))
    study.tell(trial, state=TrialState.FAIL)
    point = np.array([[trial.params[name] for name in SEARCHED]], dtype=np.float64)
    return purse.nearest(unit_cube(point)[0])


def _tpe(seed: int) -> BaseSampler:
    """As a search has it."""
    return TPESampler(multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def _plain_tpe(seed: int) -> BaseSampler:
    """As Optuna has it where nothing is said."""
    return TPESampler(seed=seed)


def methods() -> Iterator[tuple[str, Method]]:
    """All ways to search, by name."""
    yield "ours", searched(_tpe, PairedPruner())
    yield "ours, nothing pruned", searched(_tpe, None)
    yield "random", searched(lambda seed: RandomSampler(seed=seed), None)
    yield "TPE, median pruner", pruned_by_optuna(lambda s, _: (_plain_tpe(s), optuna.pruners.MedianPruner()), 8)
    yield (
        "TPE, Hyperband",
        pruned_by_optuna(
            lambda s, rows: (_plain_tpe(s), optuna.pruners.HyperbandPruner(min_resource=8, max_resource=rows)), 8
        ),
    )
    yield "TPE, Wilcoxon pruner", pruned_by_optuna(lambda s, _: (_plain_tpe(s), optuna.pruners.WilcoxonPruner()), 8)
    yield "GP", searched(lambda seed: GPSampler(seed=seed), None)
    yield "expected improvement by token", token_aware((8, 24))
    yield "halving on rows", halving((8, 24), 3)
