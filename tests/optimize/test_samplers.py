from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.api import search
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.samplers import (
    Candidate,
    CandidateMaker,
    GridSuggester,
    make_suggester,
    same_point,
    seed_of,
    shuffled,
    visible,
)
from llmsearch_optuna.space.space import Space
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, number_metric

BRANCHES = Space.of(
    [
        {"max_new_tokens": 8},
        {
            "max_new_tokens": 8,
            "do_sample": True,
            "temperature": FloatDistribution(0.1, 2.0),
            "top_p": FloatDistribution(0.5, 1.0),
        },
        {"max_new_tokens": 8, "num_beams": IntDistribution(2, 4)},
    ]
)
SMALL = Space.of(
    {"max_new_tokens": 8, "num_beams": IntDistribution(1, 3), "no_repeat_ngram_size": IntDistribution(0, 1)}
)


def settled(candidate: Candidate, value: float | None, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    return create_trial(
        state=state,
        value=value,
        params=dict(candidate.params),
        distributions=dict(candidate.distributions),
        intermediate_values={8: value} if value is not None else {},
        user_attrs={"fingerprint": candidate.fingerprint},
    )


def study(sampler: Any, space: Space, count: int, *, in_flight: int = 1, seed: int = 1) -> list[Candidate]:
    """Suggest and tell in a loop; the value is best at temperature 0.7."""
    suggester = make_suggester(sampler, space, seed=seed, direction="maximize", defaults={})
    trials: list[FrozenTrial] = []
    found = []
    for number in range(count):
        known = {t.user_attrs["fingerprint"] for t in trials}
        candidate = suggester.suggest(number, visible(trials, number, in_flight), known)
        if candidate is None:
            break
        found.append(candidate)
        trials.append(settled(candidate, -abs(float(candidate.values.get("temperature", 0.0)) - 0.7)))
    return found


def test_a_suggestion_depends_on_seed_number_and_view_only() -> None:
    first, second = study("tpe", BRANCHES, 16), study("tpe", BRANCHES, 16)
    assert [c.params for c in first] == [c.params for c in second]
    assert [c.params for c in study("tpe", BRANCHES, 16, seed=2)] != [c.params for c in first]
    # Trial 15 alone, as after a restart.
    trials = [settled(c, -abs(float(c.values.get("temperature", 0.0)) - 0.7)) for c in first[:15]]
    alone = make_suggester("tpe", BRANCHES, seed=1, direction="maximize", defaults={})
    again = alone.suggest(15, visible(trials, 15, 1), {c.fingerprint for c in first[:15]})
    assert again is not None
    assert again.params == first[15].params


def test_a_suggestion_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from test_samplers import BRANCHES, study\n"
        "print([sorted(c.params.items()) for c in study('tpe', BRANCHES, 14)])"
    )
    here = Path(__file__).parent
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(here), str(here.parent)],
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": "", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (1, 2)
    }
    assert len(said) == 1


def test_tpe_concentrates_on_what_was_good() -> None:
    late = study("tpe", BRANCHES, 40)[20:]
    sampled = [float(c.values["temperature"]) for c in late if "temperature" in c.values]
    assert len(sampled) > 10
    assert sum(abs(t - 0.7) < 0.35 for t in sampled) / len(sampled) > 0.6


def test_later_trials_are_shown_as_running_without_their_values() -> None:
    trials = [settled(c, 0.5) for c in study("random", BRANCHES, 6)]
    trials[1] = settled(study("random", BRANCHES, 2)[1], None, TrialState.FAIL)
    seen = visible(trials, 6, 3)
    assert [t.state for t in seen] == [TrialState.COMPLETE, TrialState.FAIL] + [TrialState.COMPLETE] * 2 + [
        TrialState.RUNNING
    ] * 2
    assert all(t.value is None and not t.intermediate_values for t in seen[4:])
    assert [t.params for t in seen] == [t.params for t in trials]


def test_a_trial_that_has_ended_is_copied_once() -> None:
    trials = [settled(c, 0.1 * n) for n, c in enumerate(study("random", SMALL, 6))]
    known: dict[int, FrozenTrial] = {}
    for number in range(1, 7):
        shown, copied = visible(trials[:number], number, 2, known), visible(trials[:number], number, 2)
        assert [(t.state, t.values, t.params) for t in shown] == [(t.state, t.values, t.params) for t in copied]
    first, second = visible(trials, 6, 2, known), visible(trials, 6, 2, known)
    assert all(one is other for one, other in zip(first[:5], second[:5], strict=True))


def test_what_is_shown_does_not_depend_on_whether_later_trials_have_ended() -> None:
    ended = [settled(c, 0.5) for c in study("random", BRANCHES, 6)]
    running = ended[:4] + [
        create_trial(state=TrialState.RUNNING, params=t.params, distributions=t.distributions) for t in ended[4:]
    ]
    suggester = make_suggester("tpe", BRANCHES, seed=1, direction="maximize", defaults={})
    one = suggester.suggest(6, visible(ended, 6, 3), set())
    two = suggester.suggest(6, visible(running, 6, 3), set())
    assert one is not None
    assert two is not None
    assert one.params == two.params


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_no_configuration_comes_twice_and_a_small_space_ends(sampler: Any) -> None:
    found = study(sampler, SMALL, 50)
    fingerprints = [c.fingerprint for c in found]
    assert len(set(fingerprints)) == len(fingerprints) == 6


def test_points_that_decode_the_same_count_once() -> None:
    space = Space.of(
        {
            "max_new_tokens": 8,
            "do_sample": CategoricalDistribution([False, True]),
            "temperature": FloatDistribution(0.5, 1.0, step=0.25),
        }
    )
    assert space.size() == 6
    for sampler in ("tpe", "random", "grid"):
        assert len(study(sampler, space, 20)) == 4


def test_a_grid_needs_an_end_and_has_a_seeded_order() -> None:
    with pytest.raises(InputError, match="temperature"):
        make_suggester("grid", BRANCHES, seed=1, direction="maximize", defaults={})
    orders = [[c.fingerprint for c in study("grid", SMALL, 9, seed=seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@given(size=st.integers(1, 300), seed=st.integers(0, 9))
def test_every_place_is_somewhere_once_after_shuffling(size: int, seed: int) -> None:
    assert sorted(shuffled(place, size, seed) for place in range(size)) == list(range(size))


def test_a_large_grid_makes_points_when_it_is_their_turn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = Space.of(
        {
            "max_new_tokens": 8,
            "do_sample": True,
            "top_k": IntDistribution(1, 1000),
            "temperature": FloatDistribution(0.001, 1.0, step=0.001),
        }
    )
    assert space.size() == 1_000_000
    made: list[Any] = []
    of = CandidateMaker.of

    def counted(self: CandidateMaker, point: Any) -> Candidate:
        made.append(point)
        return of(self, point)

    monkeypatch.setattr(CandidateMaker, "of", counted)
    found = study("grid", space, 4)
    assert len({candidate.fingerprint for candidate in found}) == 4
    assert len(made) == 4
    assert caplog.text.count("the grid has 1,000,000 points") == 1
    assert [c.fingerprint for c in study("grid", space, 4)] == [c.fingerprint for c in found]
    suggester = make_suggester("grid", space, seed=1, direction="maximize", defaults={})
    assert isinstance(suggester, GridSuggester)
    suggester.suggest(0, [], set())
    assert suggester.untried({found[0].fingerprint}) == 999_999


def test_a_large_grid_is_gone_through_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {candidate.fingerprint for candidate in study("grid", SMALL, 9)}
    monkeypatch.setattr("llmsearch_optuna.optimize.samplers.LARGE_GRID", 3)
    one_by_one = [candidate.fingerprint for candidate in study("grid", SMALL, 9)]
    assert len(one_by_one) == len(whole)
    assert set(one_by_one) == whole


def test_a_grid_that_n_trials_cuts_short_says_what_is_left_and_ends_by_itself_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Space.from_param_grid({"max_new_tokens": [20], "do_sample": [False, True], "temperature": [0.5, 0.9, 1.3]})
    arguments: dict[str, Any] = {
        "model": TextEngine(), "dataset": dataset(24), "space": grid, "metric": number_metric, "sampler": "grid",
        "storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "progress": False, "holdout": 0.3,
    }  # fmt: skip
    search(**arguments, n_trials=2)
    # greedy is the baseline, whatever its temperature: four configurations in all
    assert "n_trials=2 ends the study before the grid: 2 of its configurations were not tried" in caplog.text
    assert "the same call with n_trials=4 goes on" in caplog.text
    caplog.clear()
    whole = search(**arguments)
    assert len(whole.trials) == whole.settings["n_trials"] == 4
    assert "before the grid" not in caplog.text
    result = search(**arguments)
    assert len(result.trials) == 4
    sampled = [t.params["temperature"] for t in result.trials if "True" in str(t.params.get("do_sample"))]
    assert sorted(sampled) == [0.5, 0.9, 1.3]


def test_a_combination_that_is_refused_is_suggested_with_the_reason() -> None:
    space = Space.of({"max_new_tokens": 8, "eos_token_id": None, "exponential_decay_length_penalty": (2, 1.5)})
    (candidate,) = GridSuggester(space, CandidateMaker({}), seed=1)._candidates
    assert candidate.generation is None
    assert candidate.refusal is not None
    assert "eos_token_id" in candidate.refusal
    assert candidate.fingerprint.startswith("refused")


def test_a_function_that_is_a_space_may_return_something_wrong_now_and_then() -> None:
    def space(trial: Any) -> dict[str, Any]:
        temperature = trial.suggest_float("temperature", 0.5, 1.0)
        return {"max_new_tokens": 8, "do_sample": True, "temperature": -1.0 if calls["wrong"] else temperature}

    calls = {"wrong": False}
    made = Space.of(space)
    calls["wrong"] = True
    for sampler in ("tpe", "random"):
        suggester = make_suggester(sampler, made, seed=1, direction="maximize", defaults={})  # type: ignore[arg-type]
        candidate = suggester.suggest(0, [], set())
        assert candidate is not None
        assert candidate.refusal is not None
        assert "temperature" in candidate.refusal


def test_the_branch_that_decodes_as_greedy_is_found() -> None:
    make = CandidateMaker({})
    found = same_point(BRANCHES, GenerationParams.of({"max_new_tokens": 8}), make)
    assert found is not None
    assert list(found.params) == ["branch"]
    assert same_point(BRANCHES, GenerationParams.of({"max_new_tokens": 9}), make) is None


def test_seeds_differ_by_number_and_purpose() -> None:
    seeds: Sequence[int] = [seed_of(s, n, p) for s in range(3) for n in range(50) for p in ("tpe", "random")]
    assert len(set(seeds)) == len(seeds)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="sampler='cma'"):
        make_suggester("cma", BRANCHES, seed=1, direction="maximize", defaults={})  # type: ignore[arg-type]


def test_a_range_without_effect_ends_a_study_at_once(tmp_path: Path) -> None:
    space = {"max_new_tokens": 3, "do_sample": False, "top_k": IntDistribution(1, 10**12)}
    assert len(run(tmp_path, space=space, n_trials=3, dataset=dataset(4)).trials) == 1
