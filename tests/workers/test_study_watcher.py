"""What a parent tells of a study that others work on."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.workers.study_watcher import StudyWatcher
from tests.optimize.studies import SPACE, Recorder, run
from tests.synthetic import TextEngine, dataset, number_metric


def watcher(folder: Path, observer: progress.Callback, name: str = "s") -> StudyWatcher:
    arguments = {"storage": f"sqlite:///{folder}/{name}.db", "study_name": "study", "n_trials": 10}
    return StudyWatcher.of(arguments, observer)


class LookingAtEveryEvent(Recorder):
    """Looks at the database whenever the search itself says something."""

    def __init__(self, watched: StudyWatcher) -> None:
        super().__init__()
        self._watched = watched

    def on(self, event: progress.Event) -> None:
        super().on(event)
        self._watched.poll()


def test_it_tells_what_the_search_itself_tells(tmp_path: Path) -> None:
    seen = Recorder()
    watched = watcher(tmp_path, seen)
    said = LookingAtEveryEvent(watched)
    search(
        TextEngine(),
        dataset(40),
        SPACE,
        holdout=0.3,
        metric=number_metric,
        n_trials=10,
        storage=f"sqlite:///{tmp_path}/s.db",
        study_name="study",
        observer=said,
    )
    watched.poll()
    watched.close()
    kinds = (
        progress.StudyStarted,
        progress.StudyForecast,
        progress.PowerKnown,
        progress.TrialStarted,
        progress.TrialEnded,
        progress.VerdictStarted,
    )
    assert {type(event) for event in seen.events} >= set(kinds)
    for kind in kinds:
        ours = [event for event in seen.events if isinstance(event, kind)]
        theirs = [event for event in said.events if isinstance(event, kind)]
        key = lambda event: getattr(event, "number", 0)  # noqa: E731
        assert [_timeless(e) for e in sorted(ours, key=key)] == [_timeless(e) for e in sorted(theirs, key=key)]
    looks = [event for event in seen.events if isinstance(event, progress.RowsScored)]
    assert {(e.number, e.rows_done, e.mean) for e in looks} <= {
        (e.number, e.rows_done, e.mean) for e in said.events if isinstance(e, progress.RowsScored)
    }
    assert {e.number for e in looks} == set(range(10))
    theirs = {(e.number, e.rows_done): e.incumbent_mean for e in said.events if isinstance(e, progress.RowsScored)}
    for look in looks:
        assert look.incumbent_mean == pytest.approx(theirs[look.number, look.rows_done])
    work = [event for event in seen.events if isinstance(event, progress.WorkMeasured)][-1]
    assert work.rows_per_second is not None
    assert work.rows_per_second > 0
    assert work.memory is not None
    assert work.memory > 10**7


def test_trials_of_two_objectives_are_told_as_they_go(tmp_path: Path) -> None:
    seen = Recorder()
    watched = watcher(tmp_path, seen)
    run(tmp_path, objectives=("score", "tokens"), observer=LookingAtEveryEvent(watched))
    watched.close()
    looks = [event for event in seen.events if isinstance(event, progress.RowsScored)]
    assert len({event.rows_done for event in looks}) > 1


def _timeless(event: progress.Event) -> object:
    """The event without what depends on when it was looked at."""
    if isinstance(event, progress.TrialEnded):
        return (event.number, event.state, event.value, event.reason)
    return event


def test_a_study_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    seen = Recorder()
    watched = watcher(tmp_path, seen)
    watched.poll()
    assert seen.events == []
    assert "before the study had begun" in watched.resume_hint()


def test_a_resumed_study_begins_with_what_is_there(tmp_path: Path) -> None:
    whole = run(tmp_path)
    seen = Recorder()
    watched = watcher(tmp_path, seen)
    watched.poll()
    watched.poll()
    watched.close()
    (started,) = seen.events
    assert isinstance(started, progress.StudyStarted)
    assert (started.finished_trials, started.rows, started.best_value) == (
        10,
        28,
        max(t.value or 0 for t in whole.trials),
    )


def test_of_a_study_that_was_not_there_every_trial_is_news_even_if_it_has_ended_by_the_next_poll(
    tmp_path: Path,
) -> None:
    seen = Recorder()
    watched = watcher(tmp_path, seen)
    watched.poll()
    run(tmp_path)
    watched.poll()
    watched.close()
    ended = [event.number for event in seen.events if isinstance(event, progress.TrialEnded)]
    assert sorted(ended) == list(range(10))
