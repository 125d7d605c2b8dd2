"""TPE suggests from trials that are shown, not copied: the same points as from a study that holds copies of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.optimize.samplers import make_suggester, seed_of, visible
from llmsearch_optuna.optimize.seen_trials import SeenTrials
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.types import Direction

SPACE = Space.of(
    [
        {"max_new_tokens": 8, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        {"max_new_tokens": 8, "num_beams": IntDistribution(2, 6), "length_penalty": FloatDistribution(0.5, 2.0)},
    ]
)


def ended(count: int, directions: Sequence[Direction], seed: int) -> list[FrozenTrial]:
    """Trials that ended in every way, with equal scores and broken conditions among them."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        point = SPACE.at_random(rng)
        score = round(float(rng.random()), 1)
        state = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 4]
        if len(directions) > 1 and state is TrialState.PRUNED:
            state = TrialState.COMPLETE
        found.append(
            create_trial(
                state=state,
                values=None if state is TrialState.FAIL else [score, *(float(rng.random()) for _ in directions[1:])],
                params=dict(point.params),
                distributions=dict(point.distributions),
                intermediate_values={8: score} if len(directions) == 1 else {},
                constraints={"short": 1.0} if number % 5 == 0 and state is not TrialState.FAIL else None,
            )
        )
    return found


def suggested_from_copies(seen: Sequence[FrozenTrial], number: int, directions: Sequence[Direction]) -> dict[str, Any]:
    """What TPE suggests on a study that holds all of them: the slow way."""
    sampler = optuna.samplers.TPESampler(
        multivariate=True, group=True, n_startup_trials=10, seed=seed_of(3, number, "tpe")
    )
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    study.add_trials(seen)
    trial = study.ask()
    SPACE.suggest(trial)
    return dict(trial.params)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("directions", [("maximize",), ("minimize",), ("maximize", "minimize")])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_the_same_is_suggested_as_from_copies(directions: tuple[Direction, ...], in_flight: int) -> None:
    trials = ended(70, directions, seed=in_flight)
    suggester = make_suggester("tpe", SPACE, seed=3, direction=directions, defaults={})
    known: dict[int, FrozenTrial] = {}
    for number in (0, 5, 11, 12, 30, 31, 70):
        candidate = suggester.suggest(number, visible(trials[:number], number, in_flight, known), set())
        assert candidate is not None
        seen = visible(trials[:number], number, in_flight)
        assert candidate.params == suggested_from_copies(seen, number, directions)


def test_a_suggestion_copies_no_trial_however_many_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    suggester = make_suggester("tpe", SPACE, seed=3, direction="maximize", defaults={})
    made: list[FrozenTrial | None] = []
    create = optuna.storages.InMemoryStorage.create_new_trial

    def count(storage: Any, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        made.append(template_trial)
        return create(storage, study_id, template_trial)

    monkeypatch.setattr(optuna.storages.InMemoryStorage, "create_new_trial", count)
    work = []
    for number in (20, 200):
        trials, known = ended(number, ["maximize"], seed=0), dict[int, FrozenTrial]()
        visible(trials[:-1], number - 1, 4, known)
        before = dict(known)
        suggester.suggest(number, visible(trials, number, 4, known), set())
        assert len(known) == len(before) + 1
        work.append(made.copy())
        made.clear()
    assert work == [[None], [None]]


def test_seen_trials_come_first_and_stay_as_they_are() -> None:
    seen = visible(ended(12, ["maximize"], seed=1), 12, 3)
    before = copy.deepcopy(seen)
    study = optuna.create_study(storage=SeenTrials(seen), direction="maximize")
    asked = study.ask()
    asked.suggest_float("temperature", 0.1, 2.0)
    shown = study.get_trials()
    assert [t.number for t in shown] == sorted(t.number for t in shown)
    assert shown[:-1] == before == seen
    assert shown[-1].number == asked.number == 0
    assert study.get_trials(states=(TrialState.FAIL,)) == [t for t in seen if t.state is TrialState.FAIL]
