"""How a study stands, read from its database by someone who does not work on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna import progress
from llmsearch_optuna.analysis.status import LATEST, StudyStatus, read_status, work_of
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import run
from tests.synthetic import TextEngine, number_metric

NOON = datetime(2026, 1, 1, 12)


def ended(number: int, begin: float, end: float, *, seconds: float | None = None, **attributes: Any) -> FrozenTrial:
    """A trial that was at work from `begin` to `end`, in seconds after noon."""
    trial = create_trial(value=1.0, user_attrs={"seconds": end - begin if seconds is None else seconds, **attributes})
    trial.number = number
    trial.datetime_start, trial.datetime_complete = NOON + timedelta(seconds=begin), NOON + timedelta(seconds=end)
    return trial


def test_rows_a_second_count_trials_in_hand_together_once_and_a_pause_not_at_all() -> None:
    trials = [ended(0, 0, 10), ended(1, 5, 20), ended(2, 1000, 1010)]
    assert work_of(trials, {0: 30, 1: 30, 2: 30}, []).rows_per_second == pytest.approx(90 / 30)


def test_rows_a_second_are_those_of_the_latest_trials() -> None:
    slow, fast = [ended(0, 0, 100)], [ended(n, 100 + n, 101 + n) for n in range(1, LATEST + 1)]
    assert work_of(slow + fast, dict.fromkeys(range(LATEST + 1), 5), []).rows_per_second == pytest.approx(5.0)


def test_a_resumed_trial_brings_rows_that_took_no_time() -> None:
    trials = [ended(0, 0, 10), ended(1, 10, 5000, seconds=1.0)]
    assert work_of(trials, {0: 20, 1: 400}, []).rows_per_second == pytest.approx(2.0)


def test_memory_is_that_of_the_last_trial_and_replay_that_of_all() -> None:
    trials = [
        ended(0, 0, 20, memory="1.50 GB", engine={"tokens": 100}),
        ended(1, 0, 10, memory="1.25 GB", engine={"tokens": 300, "replayed_tokens": 100}),
    ]
    work = work_of(trials, {}, [])
    assert (work.memory, work.gpu_memory, work.replayed_share) == (1_500_000_000, None, 0.25)
    trials[0].user_attrs["gpu_memory"] = "20.00 GB"
    assert work_of(trials, {}, []).gpu_memory == 20_000_000_000


def test_nothing_is_known_before_anything_was_done() -> None:
    assert work_of([create_trial(state=TrialState.RUNNING)], {}, []) == progress.WorkMeasured()
    assert work_of([ended(0, 0, 10)], {}, []) == progress.WorkMeasured()


def _corpus_mean(predictions: Sequence[str], references: Sequence[Any]) -> float:
    return sum(number_metric(predictions, references)) / len(predictions)


class Watched(TextEngine):
    """Looks from outside once so many rows are decoded, then is interrupted."""

    def __init__(self, storage: str, rows: int) -> None:
        super().__init__()
        self._storage = storage
        self._rows = rows
        self.seen: list[StudyStatus] = []

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        if len(self.calls) >= self._rows:
            opened = load_result(self._storage).opened
            self.seen.append(read_status(opened, 10))
            opened.close()
            raise KeyboardInterrupt
        return super().generate(prompts, params)


def test_a_study_that_runs_elsewhere_and_one_that_was_interrupted(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    engine = Watched(storage, 110)
    with pytest.raises(StudyInterrupted):
        run(tmp_path, engine)
    (now,) = engine.seen
    assert now.workers == 1
    assert now.running
    assert now.seconds_left is not None
    assert now.work.rows_per_second is not None
    compared = [t for t in now.running if t.incumbent_mean is not None]
    trials = load_result(storage).trials
    for trial in compared:
        assert trial.incumbent_mean in [t.intermediate_values.get(trial.rows_done) for t in trials[: trial.number]]
    after = read_status(load_result(storage).opened, 10)
    assert after.workers == 0
    assert [t.number for t in after.running] == [t.number for t in now.running]
    assert after.seconds_left is None


def test_trials_of_score_and_tokens_are_as_far_as_their_records_say(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(StudyInterrupted):
        run(tmp_path, Watched(storage, 110), objectives=("score", "tokens"), replicates=2)
    result = load_result(storage)
    running = read_status(result.opened, 10).running
    assert max(trial.rows_done for trial in running) >= 8
    for trial in running:
        scored = [r for r in result.opened.records.rows("search", trial.number) if r.score is not None]
        if scored:
            assert trial.rows_done == len({r.row for r in scored})
            assert trial.mean == pytest.approx(sum(r.score or 0.0 for r in scored) / len(scored))


def test_rows_of_a_metric_of_all_rows_are_counted_without_a_score(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(StudyInterrupted):
        run(tmp_path, Watched(storage, 60), objectives=("score", "tokens"), metric=_corpus_mean)
    opened = load_result(storage).opened
    running, counts = read_status(opened, 10).running, opened.records.row_counts("search")
    assert [(t.rows_done, t.mean) for t in running] == [(counts.get(t.number, 0), None) for t in running]
    assert sum(t.rows_done for t in running) > 0
