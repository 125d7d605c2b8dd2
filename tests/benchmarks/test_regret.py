"""The search methods on a small made-up table: what they buy, what they recommend, and what they are made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from tests.benchmarks.regret import regret_at, whole_budget
from tests.benchmarks.regret_methods import ON_REQUEST, Purse, methods, unit_cube, wilcoxon_prunes
from tests.benchmarks.regret_surrogate import Surrogate, additive_means, expected_improvement
from tests.benchmarks.regret_table import SEARCHED, Table

Floats = NDArray[np.float64]


def made_up(configurations: int = 40, rows: int = 32, seed: int = 0) -> Table:
    """The cooler the better, on rows of different difficulty; hot ones write more."""
    rng = np.random.default_rng(seed)
    points = np.stack(
        [rng.uniform(d.low, d.high, configurations) for d in SEARCHED.values()],  # type: ignore[attr-defined]
        axis=1,
    )
    points[:, 2] = np.round(points[:, 2])
    worth = 0.8 - 0.4 * points[:, [0]] + 0.15 * rng.normal(size=rows)[None]
    scores = np.clip(worth + 0.05 * rng.normal(size=(configurations, rows)), 0, 1)
    tokens = rng.integers(5, 10, size=(configurations, rows)) + (20 * points[:, [0]]).astype(np.int64)
    return Table(points, scores, tokens.astype(np.int64))


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = made_up()
    table.save(tmp_path / "t.npz")
    found = Table.load(tmp_path / "t.npz")
    assert np.array_equal(found.points, table.points)
    assert np.array_equal(found.tokens, table.tokens)
    assert np.allclose(found.scores, table.scores, atol=1e-6)


def test_the_unit_cube_holds_all_points_and_its_corners_are_the_ends() -> None:
    ends = np.array([[d.low, d.high] for d in SEARCHED.values()], dtype=np.float64).T  # type: ignore[attr-defined]
    assert np.allclose(unit_cube(ends), [[0] * 4, [1] * 4])
    inside = unit_cube(made_up().points)
    assert ((inside >= 0) & (inside <= 1)).all()


@dataclass
class Watched(Purse):
    """A purse that counts what is bought."""

    bought: Counter[tuple[int, int]] = field(default_factory=Counter)

    def buy(self, configuration: int, first: int, last: int) -> Floats:
        self.bought.update((configuration, row) for row in range(first, min(last, len(self.rows))))
        return super().buy(configuration, first, last)


@pytest.mark.parametrize("name", [name for name, _ in methods() if name not in ON_REQUEST])
def test_a_method_pays_once_for_a_row_and_recommends_what_it_tried(name: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = made_up()
    rows = np.random.default_rng(1).permutation(table.scores.shape[1])[:24]
    found = []
    for _ in range(2):
        purse = Watched(table, rows, int(table.tokens.mean() * 24 * 12))
        dict(methods())[name](purse, 3)
        assert set(purse.bought.values()) == {1}
        paid = sum(int(table.tokens[c, rows[row]]) for c, row in purse.bought)
        assert purse.spent == paid
        assert purse.budget <= purse.spent <= purse.budget + 9 * 24 * int(table.tokens.max())
        assert [spent for spent, _ in purse.trace] == sorted(spent for spent, _ in purse.trace)
        assert {c for _, c in purse.trace} <= purse.tried
        found.append(purse.trace)
    assert found[0] == found[1], "a seed settles the search"
    true = table.scores.mean(axis=1)
    assert true[found[0][-1][1]] > np.quantile(true, 0.7)


def test_regret_is_that_of_what_was_recommended_last_within_each_budget() -> None:
    table = made_up(4)
    true = table.scores.mean(axis=1)
    purse = Purse(table, np.arange(24), whole_budget(table), trace=[(10, 2), (20, 1)])
    regrets = regret_at([5, 10, 19, 20, 99], purse)
    chosen = np.array([true.mean(), true[2], true[2], true[1], true[1]])
    assert regrets == pytest.approx(true.max() - chosen)


@pytest.mark.parametrize("kind", ["continuous", "two-valued"])
def test_the_wilcoxon_pruner_is_the_one_of_optuna(kind: str) -> None:
    rng, told = np.random.default_rng(0), []
    for _ in range(40):
        best, scores = rng.normal(0.1, 1.0, 24), rng.normal(0.0, 1.0, 8 * int(rng.integers(1, 3)))
        if kind == "two-valued":
            best, scores = (best > 0).astype(np.float64), (scores > 0).astype(np.float64)
        study = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner())
        first = study.ask()
        for row, score in enumerate(best):
            first.report(float(score), row)
        study.tell(first, float(best.mean()))
        second = study.ask()
        for row, score in enumerate(scores):
            second.report(float(score), row)
        told.append(second.should_prune())
        assert wilcoxon_prunes(scores, best) == told[-1]
    assert 0 < sum(told) < len(told)


def test_the_surrogate_is_the_conditional_distribution_of_the_likeliest_kernel() -> None:
    points = unit_cube(made_up(12).points)
    rng = np.random.default_rng(2)
    known, values, noise = [0, 3, 4, 7, 9], rng.normal(size=5), rng.uniform(0.1, 0.5, size=5)
    surrogate = Surrogate.of(points)
    mean, deviation = surrogate.predict(known, values, noise)
    scaled, spread = (values - values.mean()) / values.std(), values.std()
    found = []
    for kernel in surrogate.kernels:
        covariance = kernel[np.ix_(known, known)] + np.diag(noise / spread**2 + 1e-6)
        inverse = np.linalg.inv(covariance)
        likelihood = -0.5 * scaled @ inverse @ scaled - 0.5 * np.linalg.slogdet(covariance)[1]
        across = kernel[:, known]
        left = 1 - np.einsum("ij,jk,ik->i", across, inverse, across)
        found.append((likelihood, values.mean() + spread * across @ inverse @ scaled, spread * np.sqrt(left)))
    _, expected, spreads = max(found, key=lambda fit: fit[0])
    assert mean == pytest.approx(expected)
    assert deviation == pytest.approx(spreads)
    draws = rng.normal(mean[1], deviation[1], 400_000)
    assert expected_improvement(mean[[1]], deviation[[1]], 0.2)[0] == pytest.approx(
        np.maximum(draws - 0.2, 0).mean(), rel=0.05
    )


def test_rows_that_are_easy_for_all_mislead_nobody() -> None:
    """Of the first configuration only the easiest rows are known; plain means would call it the best."""
    own, easy = np.array([0.2, 0.3, 0.35, 0.45]), np.r_[np.full(8, 0.4), np.zeros(16)]
    scores = [own[0] + easy[:8], own[1] + easy, own[2] + easy, own[3] + easy]
    means, variances = additive_means(scores, rounds=60)
    assert scores[0].mean() > max(of.mean() for of in scores[1:])
    assert list(np.argsort(means)) == [0, 1, 2, 3]
    assert variances[0] > variances[1]
