"""A study of a real model that is killed in the middle of a pass, of a commit, between trials, in the verdict."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from llmsearch_optuna import progress
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.search_result import load_result
from tests.faults import places_child
from tests.faults.places_child import Place
from tests.faults.test_kill import signature
from tests.tiny import make_llama, make_tokenizer

pytestmark = pytest.mark.faults

NEVER = 10**9
# Each process begins to count anew; what is nearer to its beginning than to what others left undone comes first.
PLACES: list[tuple[Place, int]] = [
    ("commit", 1),
    ("commit", 4),
    ("commit", 12),
    ("prefill", 1),
    ("prefill", 2),
    ("decode", 3),
    ("commit", 30),
    ("trial", 1),
    ("decode", 4),
    ("commit", 45),
    ("trial", 2),
    ("prefill in the verdict", 1),
    ("decode in the verdict", 2),
    ("commit in the verdict", 1),
    ("commit in the verdict", 2),
]


def run_until(database: Path, place: Place, times: int) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.places_child"])
    child = context.Process(target=places_child.main, args=(str(database), place, times))
    child.start()
    child.join(120)
    return child.exitcode


def test_a_study_of_a_real_model_is_killed_at_every_kind_of_place_and_equals_one_that_was_not(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    whole: Any = signature(
        places_child.run(
            Engine(make_llama(), make_tokenizer(), batch_size=4), str(tmp_path / "whole.db"), progress.Quiet()
        )
    )
    torch.set_num_threads(threads)
    assert whole[1][0][3] is not None, "there is a verdict"
    for place, times in PLACES:
        assert run_until(tmp_path / "study.db", place, times) == -signal.SIGKILL, f"{place} {times} never came"
    assert run_until(tmp_path / "study.db", "commit", NEVER) == 0
    assert signature(load_result(str(tmp_path / "study.db"))) == whole
