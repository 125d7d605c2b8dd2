"""A comparison in stages: when it ends, and what its numbers are."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.group_sequential import StageDesign, chance_of_evidence, judge_stage
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.types import Direction

DESIGN = StageDesign.of(400)


def verdict(
    gain: float, rows: int, level: float, *, direction: Direction = "maximize", margin: float | None = None
) -> Verdict:
    rng = np.random.default_rng(5)
    baseline = rng.normal(0.4, 0.1, 400)
    best = baseline + gain + 0.1 * rng.normal(size=400)
    sign = -1.0 if direction == "minimize" else 1.0
    return compare(
        sign * baseline[:rows],
        sign * best[:rows],
        bounds=(0.0, 1.2) if direction == "maximize" else (-1.2, 0.0),
        direction=direction,
        margin=margin,
        alpha=level,
        planned=DESIGN.planned,
    )


def stages(gain: float, **changed: Any) -> list[Verdict]:
    found = []
    for stage, rows in enumerate(DESIGN.prompts):
        found.append(judge_stage(partial(verdict, gain, rows, **changed), DESIGN, stage))  # type: ignore[arg-type]
        if found[-1].stopped is not None:
            break
    return found


@pytest.mark.parametrize(("prompts", "expected"), [(1, 1), (79, 1), (80, 2), (120, 3), (160, 4), (1000, 4)])
def test_stages_are_equal_and_end_with_the_last_prompt(prompts: int, expected: int) -> None:
    design = StageDesign.of(prompts)
    assert (len(design), design.prompts[-1]) == (expected, prompts)
    assert max(np.diff((0, *design.prompts))) - min(np.diff((0, *design.prompts))) <= 1


def test_rows_with_one_prompt_are_in_one_stage() -> None:
    labels = [0, 0, 1, 2, 2, 2, 3]
    assert StageDesign((2, 4)).rows(labels) == (3, 7)


def test_a_large_gain_ends_it_early() -> None:
    found = stages(0.06)
    assert len(found) == 1
    assert (found[0].answer, found[0].stopped, found[0].rows) == ("better", "evidence", 100)
    assert "Stage 1 of 4 gave evidence enough" in found[0].notes


def test_no_hope_ends_it_early() -> None:
    found = stages(-0.012)
    assert found[-1].answer == "no evidence"
    assert found[-1].stopped == "futility"
    assert found[-1].rows < 400
    assert "less than 1 chance in 20" in found[-1].notes
    assert "All stages together find a difference of" in found[-1].notes


def test_a_small_gain_takes_all_stages() -> None:
    found = stages(0.01)
    assert len(found) == 4
    assert [v.stopped for v in found] == [None, None, None, found[-1].stopped]
    assert "more rows follow" in found[0].notes
    assert "All 4 stages were decoded" in found[-1].notes


def test_one_stage_is_the_look_at_all_rows() -> None:
    design = StageDesign((400,))
    found = judge_stage(partial(verdict, 0.01, 400), design, 0)
    fixed = verdict(0.01, 400, 0.05)
    assert (found.p_value, found.low, found.high) == pytest.approx((fixed.p_value, fixed.low, fixed.high), rel=1e-4)
    assert "stage" not in found.notes


@pytest.mark.parametrize("gain", [-0.05, 0.0, 0.01, 0.02, 0.05])
def test_interval_p_value_and_answer_agree_at_every_stage(gain: float) -> None:
    for found in stages(gain):
        assert found.interval is not None
        assert found.p_value is not None
        contains_zero = found.interval[0] <= 0 <= found.interval[1]
        assert contains_zero == (found.answer == "no evidence") == (found.p_value > 0.05)
        assert found.confidence == 0.95


def test_intervals_become_narrower_and_are_wider_than_those_of_one_look() -> None:
    found = stages(0.01)
    widths = [v.interval[1] - v.interval[0] for v in found if v.interval is not None]
    fixed = verdict(0.01, 400, 0.05).interval
    assert fixed is not None
    assert widths == sorted(widths, reverse=True)
    assert fixed[1] - fixed[0] < widths[-1] < 1.1 * (fixed[1] - fixed[0])


def test_directions_mirror_each_other() -> None:
    up, down = stages(0.02), stages(0.02, direction="minimize")
    assert [v.stopped for v in up] == [v.stopped for v in down]
    assert [v.answer for v in up] == [v.answer for v in down]


def test_a_margin_that_is_kept_ends_it_and_hope_for_it_goes_on() -> None:
    found = stages(0.0, margin=0.03)
    assert found[-1].answer == "not worse than margin"
    assert found[-1].stopped == "evidence"


def test_the_chance_of_evidence_is_that_of_the_rows_to_come() -> None:
    rng = np.random.default_rng(1)
    score, fraction = 1.2, DESIGN.fractions[1]
    drift = (score + rng.normal(size=400_000)) / np.sqrt(fraction)  # flat prior
    final = score * np.sqrt(fraction) + drift * (1 - fraction) + np.sqrt(1 - fraction) * rng.normal(size=400_000)
    limit = stats.norm.isf(DESIGN.levels[-1] / 2)
    assert chance_of_evidence(score, DESIGN, 1) == pytest.approx(np.mean(final > limit), abs=0.003)


def test_what_is_detectable_is_said_of_all_stages() -> None:
    first, last = verdict(0.0, 100, DESIGN.levels[0]), verdict(0.0, 400, 0.05)
    assert first.detectable is not None
    assert last.detectable is not None
    assert first.detectable == pytest.approx(last.detectable, rel=0.25)
