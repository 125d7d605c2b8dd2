"""Ways to search a table of configurations, each an anytime search: what it recommends after how many tokens.

Every method sees the same rows in the same order, pays for each row's generated tokens, and suggests points of the
continuous space, of which the nearest configuration that it has not tried is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from scipy import stats

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.samplers import STARTUP_TRIALS
from tests.benchmarks.regret_surrogate import Surrogate, additive_means, expected_improvement
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

    @cached_property
    def cube(self) -> Floats:
        """The configurations in the unit cube, [configurations, parameters]."""
        return unit_cube(self.table.points)

    def nearest(self, point: Floats) -> int:
        """Return the configuration nearest to a point of the unit cube that has not been tried."""
        distance = ((self.cube - point) ** 2).sum(axis=1)
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
            _tell(study, purse.table, configuration, scores, is_whole)
            if is_whole:
                complete[configuration] = scores
                purse.recommend(max(complete, key=lambda c: complete[c].mean()))

    return run


def pruned_by_optuna(make: Callable[[int, int], tuple[BaseSampler, optuna.pruners.BasePruner]], step: int) -> Method:
    """A sampler and a pruner of Optuna, as a user's own loop has them: the running mean every so many rows.

    Args:
        make: Of a seed and the rows.
        step: Rows between two reports.
    """

    def run(purse: Purse, seed: int) -> None:
        total = len(purse.rows)
        sampler, pruner = make(seed, total)
        # Hyperband assigns brackets by the name of the study.
        study = optuna.create_study(study_name=f"seed {seed}", direction="maximize", sampler=sampler, pruner=pruner)
        complete: dict[int, float] = {}
        while purse.is_open:
            configuration = _suggested(study, purse)
            study.enqueue_trial(params_of(purse.table, configuration))
            trial = study.ask(dict(SEARCHED))
            scores = np.empty(0)
            while len(scores) < total:
                last = min(total, len(scores) + step)
                scores = np.concatenate([scores, purse.buy(configuration, len(scores), last)])
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


def wilcoxon_prunes(scores: Floats, best: Floats, p_threshold: float = 0.1) -> bool:
    """Whether Optuna's ``WilcoxonPruner`` with its own settings ends a trial, from both trials' scores by row.

    The pruner itself is told a row at a time, and each of these takes a storage's time; a test holds the two equal.

    Args:
        scores: Of the trial, on its first rows.
        best: Of the best complete trial, on all rows.
        p_threshold: As the pruner has it.
    """
    differences = scores - best[: len(scores)]
    if len(differences) < 2 or best.mean() <= scores.mean():
        return False
    return _wilcoxon_p(tuple(np.sort(differences).tolist())) < p_threshold


@lru_cache(maxsize=100_000)
def _wilcoxon_p(differences: tuple[float, ...]) -> float:
    """Kept, since SciPy counts through all signs where few differences have ties, and scores have few values."""
    return float(stats.wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue)


def pruned_by_wilcoxon(make: Callable[[int], BaseSampler], step: int) -> Method:
    """A sampler of Optuna with its Wilcoxon pruner, which compares with the best trial row by row."""

    def run(purse: Purse, seed: int) -> None:
        study = optuna.create_study(direction="maximize", sampler=make(seed))
        total, best = len(purse.rows), np.empty(0)
        while purse.is_open:
            configuration, scores = _suggested(study, purse), np.empty(0)
            while len(scores) < total:
                last = min(total, len(scores) + step)
                scores = np.concatenate([scores, purse.buy(configuration, len(scores), last)])
                if len(best) and len(scores) < total and wilcoxon_prunes(scores, best):
                    break
            is_whole = len(scores) == total
            _tell(study, purse.table, configuration, scores, is_whole)
            if is_whole and (not len(best) or scores.mean() > best.mean()):
                best = scores
                purse.recommend(configuration)

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


@dataclass
class Seen:
    """What was bought so far, and what follows from it for all configurations.

    Attributes:
        purse: Where scores are bought.
        scores: Of each configuration, on its first rows.
    """

    purse: Purse
    scores: dict[int, Floats] = field(default_factory=dict)

    @cached_property
    def surrogate(self) -> Surrogate:
        """The Gaussian process over the table's configurations."""
        return Surrogate.of(self.purse.cube)

    def rows_of(self, configuration: int) -> int:
        """Return how many rows of it were bought."""
        return len(self.scores.get(configuration, ()))

    def buy(self, configuration: int, last: int) -> None:
        """Buy a configuration's rows up to before ``last``."""
        bought = self.purse.buy(configuration, self.rows_of(configuration), last)
        self.scores[configuration] = np.concatenate([self.scores.get(configuration, np.empty(0)), bought])

    def by_mean(self) -> tuple[Floats, Floats]:
        """Return mean and deviation of every configuration, from the plain means of the rows bought."""
        known = list(self.scores)
        means = np.array([self.scores[c].mean() for c in known])
        noise = np.array([(self.scores[c].var() + 0.01) / len(self.scores[c]) for c in known])
        return self.surrogate.predict(known, means, noise)

    def by_row(self) -> tuple[Floats, Floats]:
        """Return the same where rows count as easy or hard for all: few rows are then not mistaken for all."""
        known = list(self.scores)
        return self.surrogate.predict(known, *additive_means([self.scores[c] for c in known]))

    def tokens_a_row(self) -> Floats:
        """Return what a row of each configuration is expected to cost, in tokens."""
        known = list(self.scores)
        seen = [self.purse.table.tokens[c, self.purse.rows[: self.rows_of(c)]].mean() for c in known]
        noise = np.array([0.1 / self.rows_of(c) for c in known])
        return np.exp(self.surrogate.predict(known, np.log(np.maximum(seen, 1.0)), noise)[0])

    def next_step(self, steps: Sequence[int], least: int = 0) -> NDArray[np.int64]:
        """Return how many rows each configuration has after its next purchase; 0 for one that has all."""
        rows = np.array([self.rows_of(c) for c in range(len(self.purse.cube))])
        return np.array([next((s for s in steps if s > r and s >= least), 0) for r in rows])


def gaussian_process(purse: Purse, seed: int) -> None:
    """Expected improvement of a Gaussian process, all rows of each trial: what `GPSampler` does, on listed points."""
    seen = Seen(purse)
    order = np.random.default_rng(seed).permutation(len(purse.cube))
    while purse.is_open:
        chosen = int(order[len(seen.scores)])
        if len(seen.scores) >= STARTUP_TRIALS:
            mean, deviation = seen.by_mean()
            best = max(scores.mean() for scores in seen.scores.values())
            improvement = expected_improvement(mean, deviation, best)
            improvement[list(seen.scores)] = -1.0
            chosen = int(improvement.argmax())
        seen.buy(chosen, len(purse.rows))
        purse.recommend(max(seen.scores, key=lambda c: seen.scores[c].mean()))


def token_aware(fidelities: Sequence[int]) -> Method:
    """Expected improvement by token over configurations and fidelities, after EcoTune (Xu et al., EMNLP 2025).

    As its abstract says: tokens are the fidelity's cost, modelled by configuration; the acquisition is the expected
    improvement for each token; and the fidelity follows the budget: new configurations begin on more rows as it is
    spent. (Rows take the place of the paper's benchmark subsets; the paper's code was not at hand.)
    """

    def run(purse: Purse, seed: int) -> None:
        seen, steps = Seen(purse), [*fidelities, len(purse.rows)]
        order = np.random.default_rng(seed).permutation(len(purse.cube))
        while purse.spent < purse.budget:
            chosen, last = int(order[len(seen.scores) % len(order)]), steps[0]
            if len(seen.scores) >= STARTUP_TRIALS:
                mean, deviation = seen.by_mean()
                full = [scores.mean() for scores in seen.scores.values() if len(scores) == steps[-1]]
                best = max(full) if full else float(mean[list(seen.scores)].max())
                least = fidelities[min(len(fidelities) - 1, int(len(fidelities) * purse.spent / purse.budget))]
                following = seen.next_step(steps, least)
                if not following.any():
                    return
                rows = following - np.array([seen.rows_of(c) for c in range(len(following))])
                cost = np.maximum(rows, 1) * seen.tokens_a_row()
                value = np.where(following > 0, expected_improvement(mean, deviation, best) / cost, -1.0)
                chosen = int(value.argmax())
                last = int(following[chosen])
            seen.buy(chosen, last)
            most = max(map(len, seen.scores.values()))
            longest = [c for c in seen.scores if len(seen.scores[c]) == most]
            purse.recommend(max(longest, key=lambda c: seen.scores[c].mean()))

    return run


def paused(steps: Sequence[int], startup: int = STARTUP_TRIALS) -> Method:
    """Trials that are paused after a few rows and taken up again: what our search might become.

    Every purchase is the next step of the configuration with the most expected improvement by token, or, every second
    time, of the one that would be recommended, until it has all rows. Rows count as easy or hard for all, so that a
    trial on its first rows meets one on all of them; recommended is what is best by a deviation less.
    """

    def run(purse: Purse, seed: int) -> None:
        seen, steps_of_all = Seen(purse), [*steps, len(purse.rows)]
        order = np.random.default_rng(seed).permutation(len(purse.cube))
        mean = deviation = np.empty(0)
        for turn in range(len(order) * len(steps_of_all)):
            if purse.spent >= purse.budget:
                return
            chosen = int(order[turn % len(order)])
            if turn >= startup:
                known = list(seen.scores)
                following = seen.next_step(steps_of_all)
                rows = following - np.array([seen.rows_of(c) for c in range(len(following))])
                improvement = expected_improvement(mean, deviation, float(mean[known].max()))
                cost = np.maximum(rows, 1) * seen.tokens_a_row()
                chosen = int(np.where(following > 0, improvement / cost, -1.0).argmax())
                leader = purse.trace[-1][1]
                if turn % 2 and following[leader]:
                    chosen = leader
            last = int(seen.next_step(steps_of_all)[chosen])
            if not last:
                return
            seen.buy(chosen, last)
            mean, deviation = seen.by_row()
            known = list(seen.scores)
            purse.recommend(known[int((mean - deviation)[known].argmax())])

    return run


def _suggested(study: optuna.Study, purse: Purse) -> int:
    trial = study.ask(dict(SEARCHED))
    study.tell(trial, state=TrialState.FAIL)
    point = np.array([[trial.params[name] for name in SEARCHED]], dtype=np.float64)
    return purse.nearest(unit_cube(point)[0])


def _tell(study: optuna.Study, table: Table, configuration: int, scores: Floats, is_whole: bool) -> None:
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE if is_whole else TrialState.PRUNED,
            params=params_of(table, configuration),
            distributions=dict(SEARCHED),
            value=float(scores.mean()),
            intermediate_values={} if is_whole else {len(scores): float(scores.mean())},
        )
    )


def _tpe(seed: int) -> BaseSampler:
    """As a search has it; also for the pruners of Optuna, whose own default ignores that parameters belong together."""
    return TPESampler(multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def near_the_best_temperature(table: Table, seed: int) -> BaseSampler:
    """TPE whose first trials have the temperature of the table's best configuration, more or less.

    What a warm start from the model's entropy (TURN, Du et al., ICML 2025) could give at most: its estimate is not
    known here, and is taken to be right within 0.1.
    """
    best = float(table.points[table.scores.mean(axis=1).argmax(), 0])
    return _WarmTpe(best, seed)


class _WarmTpe(TPESampler):
    def __init__(self, temperature: float, seed: int) -> None:
        super().__init__(multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS, seed=seed)
        self._near, self._random = temperature, np.random.default_rng(seed)

    def sample_independent(self, study, trial, param_name, param_distribution):  # type: ignore[no-untyped-def]
        if param_name != "temperature":
            return super().sample_independent(study, trial, param_name, param_distribution)
        drawn = self._random.normal(self._near, 0.1)
        return float(np.clip(drawn, param_distribution.low, param_distribution.high))


def _warm(purse: Purse, seed: int) -> None:
    searched(lambda s: near_the_best_temperature(purse.table, s), PairedPruner())(purse, seed)


def methods() -> Iterator[tuple[str, Method]]:
    """All ways to search, by name; those in `ON_REQUEST` take long, and run where they are named."""
    yield "ours", searched(_tpe, PairedPruner())
    yield "ours, nothing pruned", searched(_tpe, None)
    yield "ours, risk 0.2", searched(_tpe, PairedPruner(risk=0.2))
    yield "ours, temperature known", _warm
    yield "ours, paused trials", paused((8, 24))
    yield "random", searched(lambda seed: RandomSampler(seed=seed), None)
    yield "TPE, median pruner", pruned_by_optuna(lambda s, _: (_tpe(s), optuna.pruners.MedianPruner()), 8)
    yield (
        "TPE, Hyperband",
        pruned_by_optuna(
            lambda s, rows: (_tpe(s), optuna.pruners.HyperbandPruner(min_resource=8, max_resource=rows)), 8
        ),
    )
    yield "TPE, Wilcoxon pruner", pruned_by_wilcoxon(_tpe, 8)
    yield "GP", gaussian_process
    yield "expected improvement by token", token_aware((8, 24))
    yield "halving on rows", halving((8, 24), 3)
    yield "GP of Optuna", searched(lambda seed: GPSampler(seed=seed), None)


ON_REQUEST = ("GP of Optuna", "ours, risk 0.2")
"""Sixteen seconds and one second a search."""
