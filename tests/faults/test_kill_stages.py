"""A verdict that is killed in the middle of its second stage, and goes on."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from llmsearch_optuna.search_result import load_result
from tests.faults import stages_child
from tests.optimize.studies import signature

pytestmark = pytest.mark.faults


def test_a_verdict_that_is_killed_in_its_second_stage_equals_one_that_was_not(tmp_path: Path) -> None:
    whole = stages_child.run(str(tmp_path / "whole.db"), stages_child.Mortal(0))
    assert whole.verdict.stage >= 2
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=stages_child.main, args=(str(tmp_path / "study.db"), 2))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    left = load_result(str(tmp_path / "study.db"))
    assert left.verdict is None
    decoded = len(left.row_scores(0, "holdout")) or len(left.records(0, "holdout"))
    assert decoded >= 40, "the first stage is stored"
    engine = stages_child.Mortal(0)
    assert signature(stages_child.run(str(tmp_path / "study.db"), engine)) == signature(whole)
    assert 0 < len(engine.calls) < 2 * 160
