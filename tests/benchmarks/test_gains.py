"""The generated data are what the generator gives, the studies can be run, a search of a table pays for its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmsearch_optuna.metrics import json_fields, tool_call
from llmsearch_optuna.study_file.parse import read_study_file
from tests.benchmarks import gains, gains_data
from tests.benchmarks.regret import regret_at, regrets
from tests.benchmarks.regret_methods import Purse, gaussian_process, methods, unit_cube
from tests.benchmarks.regret_table import SEARCHED, Table


@pytest.mark.parametrize("name", gains_data.DATA)
def test_the_generated_rows_are_those_that_are_kept(name: str) -> None:
    text = (gains_data.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    assert gains_data.lines(name) == text
    assert len(set(text.splitlines())) == gains_data.ROWS


@pytest.mark.parametrize(
    ("name", "column", "metric"), [("records", "record", json_fields), ("tool_calls", "call", tool_call)]
)
def test_a_reference_is_right_by_its_own_metric(name: str, column: str, metric: object) -> None:
    rows = [json.loads(line) for line in gains_data.lines(name).splitlines()[:50]]
    references = [row[column] for row in rows]
    scores = metric().score_rows(references, references, rows)  # type: ignore[operator]
    assert list(scores) == [1.0] * 50


@pytest.mark.parametrize("study", [study.file for study in gains.STUDIES])
def test_each_study_names_what_is_in_use(study: str) -> None:
    file = read_study_file(gains.FOLDER / f"{study}.toml")
    assert file.baseline == "card"
    assert set(file.baselines) == {"greedy", "card"}


@pytest.fixture
def table() -> Table:
    rng = np.random.default_rng(0)
    points = np.stack(
        [rng.uniform(0.05, 1.5, 60), rng.uniform(0.5, 1, 60), rng.integers(1, 201, 60), rng.uniform(0.85, 1.25, 60)],
        axis=1,
    ).astype(np.float64)
    true = 0.8 - 0.4 * unit_cube(points)[:, 0]
    scores = np.clip(true[:, None] + rng.normal(0, 0.2, (60, 100)), 0, 1)
    return Table(points, scores, rng.integers(10, 60, (60, 100)))


def test_a_table_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "t.npz")
    found = Table.load(tmp_path / "t.npz")
    assert np.array_equal(found.points, table.points)
    assert np.array_equal(found.tokens, table.tokens)
    assert np.allclose(found.scores, table.scores, atol=1e-6)


def test_the_unit_cube_holds_all_points_and_its_corners_are_the_ends(table: Table) -> None:
    ends = np.array([[d.low, d.high] for d in SEARCHED.values()], dtype=np.float64).T  # type: ignore[attr-defined]
    assert np.allclose(unit_cube(ends), [[0] * 4, [1] * 4])
    assert ((unit_cube(table.points) >= 0) & (unit_cube(table.points) <= 1)).all()


@pytest.mark.parametrize("name", [name for name, _ in methods() if name != "GP"])
def test_a_method_pays_for_every_row_and_ends_near_the_best(name: str, table: Table) -> None:
    rows = np.arange(60)
    purse = Purse(table, rows, budget=int(table.tokens[:, rows].sum() * 0.6))
    dict(methods())[name](purse, 1)
    dearest = int(table.tokens.sum(axis=1).max())
    assert purse.trace
    assert purse.spent <= purse.budget + 9 * dearest  # a group of halving ends together
    assert [spent for spent, _ in purse.trace] == sorted(spent for spent, _ in purse.trace)
    assert regret_at([purse.budget * 2.0], purse)[0] < 0.1


def test_without_a_recommendation_regret_is_that_of_any_configuration(table: Table) -> None:
    purse = Purse(table, np.arange(60), budget=1000)
    purse.trace.append((500, int(table.scores.mean(axis=1).argmax())))
    true = table.scores.mean(axis=1)
    assert regret_at([100, 500], purse).tolist() == [pytest.approx(true.max() - true.mean()), 0.0]


def test_a_seed_gives_the_same_search(table: Table) -> None:
    assert regrets(table, "ours", 3).tolist() == regrets(table, "ours", 3).tolist()


def test_the_gaussian_process_goes_through_what_is_known_for_sure() -> None:
    points = np.linspace(0, 1, 9)[:, None]
    values = np.sin(4 * points[:, 0])
    mean, deviation = gaussian_process(points, values, np.zeros(9), np.array([[0.5], [0.56]]))
    assert mean[0] == pytest.approx(np.sin(2.0), abs=1e-3)
    assert mean[1] == pytest.approx(np.sin(2.24), abs=0.02)
    assert deviation[0] < deviation[1] < 0.2
