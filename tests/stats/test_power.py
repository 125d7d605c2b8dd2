"""Power: what a holdout can find, held against simulated looks."""

from __future__ import annotations

import numpy as np
import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.power import minimum_detectable


def test_the_detectable_difference_is_found_in_four_of_five_looks() -> None:
    rng = np.random.default_rng(0)
    power = minimum_detectable(rng.normal(0.4, 0.1, 500), rows=40, correlation=0.5, bounds=(0, 1))
    assert power.paired is not None
    found = 0
    for seed in range(200):
        shared = rng.normal(0.4, 0.1 * np.sqrt(0.5), 40)
        first, second = (shared + 0.1 * np.sqrt(0.5) * rng.normal(size=40) for _ in range(2))
        found += compare(first, second + power.paired, bounds=(0, 1), seed=seed).answer == "better"
    assert found / 200 == pytest.approx(0.8, abs=0.08)


def test_so_few_rows_promise_nothing() -> None:
    """With 2 to 5 prompts no test can reject, and 0/1 scores need more rows than 6."""
    baseline = np.random.default_rng(4).random(20)
    for rows in range(1, 6):
        few = minimum_detectable(baseline, rows=rows, bounds=(0, 1))
        assert few.paired is None
        assert "cannot show anything" in few.text
    shares = minimum_detectable((baseline > 0.6).astype(float), rows=7, bounds=(0, 1))
    assert shares.paired is None
    assert "too few to find even a large difference in 80% of cases" in shares.text


def test_rows_needed_find_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    power = minimum_detectable(rng.random(200), rows=60, bounds=(0, 1))
    assert list(power.rows_needed) == [1, 2, 5]
    assert power.rows_needed[1] > power.rows_needed[2] > power.rows_needed[5]
    at_that_size = minimum_detectable(rng.random(200), rows=power.rows_needed[2], bounds=(0, 1))
    assert at_that_size.paired == pytest.approx(0.02, rel=0.1)
    assert power.rows_needed[1] == pytest.approx(4 * power.rows_needed[2], rel=0.05)


def test_a_second_configuration_gives_the_correlation() -> None:
    rng = np.random.default_rng(2)
    rows = rng.random(300)
    seen = minimum_detectable(rows, rows=60, other=rows + 0.01 * rng.normal(size=300), bounds=(0, 1))
    assumed = minimum_detectable(rows, rows=60, bounds=(0, 1))
    assert seen.correlation > 0.99
    assert seen.observed
    assert not assumed.observed
    assert seen.paired is not None
    assert assumed.paired is not None
    assert seen.paired < 0.3 * assumed.paired
    assert "as seen" in seen.text
    assert "assumed" in assumed.text


def test_replicates_take_chance_in_decoding_out_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    scores = rng.uniform(-1, 1, (2000, 1)) + 2 * rng.uniform(-1, 1, (2000, 2))
    once = minimum_detectable(scores, rows=1000, replicates=1)
    often = minimum_detectable(scores, rows=1000, replicates=100)
    assert once.paired is not None
    assert often.paired is not None
    assert often.paired / once.paired == pytest.approx(np.sqrt(1.04 / 5), rel=0.1)


def test_the_text_speaks_of_points() -> None:
    text = minimum_detectable(np.random.default_rng(4).random(50), rows=18, replicates=3, bounds=(0, 1)).text
    assert "18 held-out rows, decoded 3 times where something is sampled" in text
    assert "points) would be found in 80% of cases" in text
    assert "A gain of 1 point takes about " in text
    assert " rows to find, of 2 points about " in text
    assert ", of 5 points about " in text


def test_no_holdout_no_scores_no_power() -> None:
    few = minimum_detectable([0.1, 0.5, 0.7], rows=0, bounds=(0, 1))
    assert few.paired is None
    assert "cannot show anything" in few.text
    assert "scores 0" in minimum_detectable([0.0, 0.0], rows=30).text
    with pytest.raises(InputError):
        minimum_detectable([0.5], rows=30)
    with pytest.raises(InputError):
        minimum_detectable([0.5, 0.6], rows=30, correlation=1.0)
    with pytest.raises(InputError):
        minimum_detectable([0.5, 0.6], rows=30, other=[0.5])


def test_beyond_what_is_counted_a_share_shrinks_once_with_the_root_of_the_rows() -> None:
    answers = np.random.default_rng(0).binomial(1, 0.4, 400).astype(float)
    counted, four_times = (minimum_detectable(answers, rows=rows, bounds=(0, 1)).paired for rows in (3_000, 12_000))
    assert counted is not None
    assert four_times == pytest.approx(counted / 2)
