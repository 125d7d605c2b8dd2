"""The honesty benchmark stands on arrays; these tests hold it to real searches and to its own claims."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL
from tests.benchmarks import honesty
from tests.benchmarks.array_study import run_study
from tests.benchmarks.crossed_worlds import HARD, Settings, budget_trials, crossed, held_out, is_better
from tests.benchmarks.stage_worlds import replicates, staged
from tests.benchmarks.verdict_worlds import asymmetric, sparse
from tests.benchmarks.worlds import SCALE, Shape, World


@pytest.mark.parametrize("shape", ["continuous", "0/1"])
def test_a_real_search_comes_out_as_the_same_study_on_arrays(shape: Shape) -> None:
    assert honesty._real_search(World(shape, 60, 5.0, 3)) == (True, True, True)


@pytest.mark.parametrize("shape", ["continuous", "0/1", "skewed"])
def test_a_setting_is_worth_what_the_world_says(shape: Shape) -> None:
    world = World(shape, 200_000, 5.0, 0)
    gain = world.scores(0.7, 1).mean() - world.scores(None, 1).mean()
    assert world.worth(0.7) == 5.0
    assert gain == pytest.approx(0.05, abs=0.006)
    if shape == "continuous":
        assert world.scores(None, 1).std() == pytest.approx(SCALE * np.sqrt(1.5**2 + 0.98), rel=0.02)


def test_pruning_spares_rows_and_keeps_a_clear_winner() -> None:
    world, settings = World("continuous", 200, 5.0, 1), list(np.random.default_rng(0).random(18))
    plain = run_study(world, settings, pruner=None, seed=1)
    paired = run_study(world, settings, pruner=PairedPruner(), seed=1)
    assert plain.saved == 0
    assert paired.saved > 0.15
    assert (plain.winner, plain.verdict.answer) == (paired.winner, "better")


def test_our_readme_section_is_replaced_and_the_others_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n\n## Study\n\nnumbers\n\n## Honesty\n\nold\n\n### old too\n\n## Growth\n\nmore\n")
    monkeypatch.setattr(honesty, "README", readme)
    honesty._write("## Honesty\n\nnew\n")
    text = readme.read_text()
    assert "old" not in text
    assert all(part in text for part in ("## Study\n\nnumbers", "## Growth\n\nmore", "## Honesty\n\nnew"))
    honesty._write("## Honesty\n\nnewer\n")
    assert readme.read_text().count("## Honesty") == 1


def test_the_hard_worlds_make_their_tables() -> None:
    with ThreadPoolExecutor(1) as pool:
        derailing, margin = asymmetric(pool, 0.05), sparse(pool, 0.02)
    assert derailing.count("\n|") == 14
    assert margin.count("\n|") == 5


@pytest.mark.slow
def test_the_stages_make_their_tables() -> None:
    with ThreadPoolExecutor(1) as pool:
        in_stages, by_variance = staged(pool, 0.02), replicates(pool, 0.02)
    assert in_stages.count("\n|") == 12
    assert by_variance.count("\n|") == 14


def test_a_cell_of_halves_decides_as_the_verdict_does() -> None:
    world = replace(HARD["all derail on 5 % of rows"], rows=12)
    rng = np.random.default_rng(0)
    baseline, winner = rng.uniform(0.2, 0.5, (60, 12, 4)), rng.uniform(0.2, 0.5, (60, 12, 3))
    winner += rng.uniform(0, 0.3, (60, 1, 1))
    leads = winner.mean(axis=2) - baseline[..., 1:].mean(axis=2)
    said = is_better(world, leads, baseline, [winner], UNSEEN_LEVEL, rng)
    expected = [
        compare(first[:, 1:], second, bounds=(0.0, 1.0), unseen_level=UNSEEN_LEVEL).answer == "better"
        for first, second in zip(baseline, winner, strict=True)
    ]
    assert said.tolist() == expected
    assert 0 < said.sum() < 60


@pytest.mark.parametrize("name", ["nothing to find", "so, and few good ones", "0/1, half harmful"])
def test_halves_seldom_recommend_what_is_no_better(name: str) -> None:
    for shared in (False, True):
        found = crossed(replace(HARD[name], rows=40, shared=shared), 300, 1)
        assert found.false <= 0.04 + 3 * np.sqrt(0.04 / 300)


def test_halves_find_more_than_a_holdout_of_few_rows() -> None:
    world = Settings("continuous", 40, "hill", 0.05)
    halves, held = crossed(world, 200, 2), held_out(world, 200, 2, share=0.3, trials=24)
    assert halves.found > held.found + 0.1
    assert halves.false <= 0.02


def test_rows_to_search_are_bought_with_trials() -> None:
    assert [budget_trials(40, rows) for rows in (50, 100, 200)] == [92, 40, 14]
    for trials, rows in ((92, 50), (40, 100), (14, 200)):
        assert rows * (trials + 12) == 100 * (40 + 12)
