"""More rows than a search needs: few are searched, the winner is judged on the others in stages."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna import progress
from llmsearch_optuna.analysis.status import read_status
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize import prepare as preparation
from llmsearch_optuna.optimize.holdout import StagePlan, TokenCosts, plan_stages
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.stats.replicate_allocation import DifferenceVariance
from llmsearch_optuna.task.split import split_rows, split_with_reserve
from tests.optimize.studies import Recorder, run, signature
from tests.synthetic import TextEngine, dataset, temperature_near

GAIN = 0.12
RESERVE = {"dataset": dataset(220), "search_rows": 20, "holdout_rows": 160, "n_trials": 6}
STAGES = [40, 80, 120, 160]


def small_gain(params: Mapping[str, Any]) -> float:
    return GAIN * temperature_near(0.7)(params)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Recorder]:
    recorder = Recorder()
    folder = tmp_path_factory.mktemp("staged")
    return run(folder, TextEngine(small_gain), observer=recorder, **RESERVE), recorder


def stages_told(recorder: Recorder) -> list[tuple[int, int, int]]:
    return [(e.stage, e.stages, e.rows) for e in recorder.events if isinstance(e, progress.VerdictStarted)]


def test_few_rows_are_split_as_without_a_reserve() -> None:
    for rows in (10, 19, 20, 60, 142):
        split = split_with_reserve(range(rows), 0.3, 42, search_rows=100, holdout_rows=1000)
        assert (split.search, split.holdout) == split_rows(range(rows), 0.3, 42)
        assert not split.is_reserve


def test_no_prompt_is_in_both_parts_and_its_rows_are_together() -> None:
    prompts = [n % 90 for n in range(200)]
    split = split_with_reserve(prompts, 0.3, 1, search_rows=30, holdout_rows=50)
    searched, held = ({prompts[row] for row in part} for part in (split.search, split.holdout))
    assert (len(searched), len(held)) == (30, 50)
    assert not searched & held
    of_rows = [prompts[row] for row in split.holdout]
    assert len(list(dict.fromkeys(of_rows))) == 1 + sum(a != b for a, b in pairwise(of_rows))


def test_nothing_held_out_leaves_no_reserve() -> None:
    split = split_with_reserve(range(300), 0.0, 1, search_rows=30, holdout_rows=50)
    assert (len(split.search), split.holdout, split.is_reserve) == (300, (), False)


def test_trials_see_the_search_rows_only(staged: tuple[SearchResult, Recorder]) -> None:
    result, _ = staged
    assert len(result.row_scores(0)) == 20
    assert len([item for item in result.items.values() if item.part == "holdout"]) == 160
    assert set(result.row_scores(0)).isdisjoint(result.row_scores(0, "holdout"))


def test_it_ends_with_the_stage_that_gives_evidence(staged: tuple[SearchResult, Recorder]) -> None:
    result, recorder = staged
    verdict = result.verdict
    assert verdict is not None
    assert (verdict.answer, verdict.stopped, verdict.stages) == ("better", "evidence", 4)
    assert verdict.stage is not None
    assert 2 <= verdict.stage < 4
    assert verdict.rows == STAGES[verdict.stage - 1]
    assert stages_told(recorder) == [(n + 1, 4, STAGES[n]) for n in range(verdict.stage)]
    assert set(result.row_scores(0, "holdout")) == set(result.row_scores(result.best_trial.number, "holdout"))
    assert len(result.row_scores(0, "holdout")) == verdict.rows, "rows of later stages are not decoded"
    assert f"Stage {verdict.stage} of 4 gave evidence enough" in verdict.sentence


def test_the_start_says_why_not_all_rows_are_searched(staged: tuple[SearchResult, Recorder]) -> None:
    (started,) = [e for e in staged[1].events if isinstance(e, progress.StudyStarted)]
    assert started.split.startswith("20 of 220 rows are searched: every trial pays for each of them. 160 others")
    assert "in up to 4 stages" in started.split


def test_where_nothing_is_to_be_found_it_ends_without_hope(tmp_path: Path) -> None:
    verdict = run(tmp_path, TextEngine(lambda params: 0.5), **RESERVE).verdict
    assert verdict is not None
    if verdict.difference is not None:
        assert verdict.answer == "no evidence"
        assert verdict.rows <= 160


class Ending(TextEngine):
    """Ctrl-C comes some calls after a stage has begun."""

    def __init__(self, stage: int, calls: int) -> None:
        super().__init__(small_gain)
        self._stage, self._calls, self._is_on = stage, calls, False

    def on(self, event: progress.Event) -> None:
        self._is_on |= isinstance(event, progress.VerdictStarted) and event.stage == self._stage

    def generate(self, prompts: Any, params: Mapping[str, Any]) -> Any:
        self._calls -= self._is_on
        if self._calls < 0:
            raise KeyboardInterrupt
        return super().generate(prompts, params)


def test_a_stage_that_was_interrupted_goes_on_with_the_same_rows(
    tmp_path: Path, staged: tuple[SearchResult, Recorder]
) -> None:
    whole, _ = staged
    interrupted = Ending(2, 1)
    with pytest.raises(BaseException, match="interrupted"):
        run(tmp_path, interrupted, observer=interrupted, **RESERVE)
    left = load_result(f"{tmp_path}/s.db")
    assert left.verdict is None
    under_way = read_status(left.opened, 6).stage
    assert under_way is not None
    assert (under_way.stage, under_way.stages, under_way.rows) == (2, 4, 80)
    again = Ending(0, 0)
    result = run(tmp_path, again, **RESERVE)
    assert signature(result) == signature(whole)
    assert not set(again.calls) & set(interrupted.calls), "nothing is decoded twice"


def test_a_study_of_the_version_before_keeps_its_split(tmp_path: Path) -> None:
    few: dict[str, Any] = RESERVE | {"n_trials": 2}
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(preparation, "ALGORITHM", 2)
        before = run(tmp_path, TextEngine(small_gain), **few)
    assert len(before.row_scores(0)) == 154
    engine = TextEngine(small_gain)
    after = run(tmp_path, engine, **few)
    assert not engine.calls
    assert signature(after) == signature(before)


def test_another_number_of_search_rows_is_another_study(tmp_path: Path) -> None:
    few: dict[str, Any] = RESERVE | {"n_trials": 1}
    run(tmp_path, TextEngine(small_gain), **few)
    with pytest.raises(StudyError, match="search_rows"):
        run(tmp_path, TextEngine(small_gain), **few | {"search_rows": 30})


def planned(**changed: Any) -> StagePlan:
    arguments: dict[str, Any] = {
        "prompts": range(400),
        "budget": 400,
        "max_tokens": None,
        "most_replicates": 3,
        "variance": DifferenceVariance(rows=1.0, sampling=1.0),
        "costs": TokenCosts(fixed=0.0, sampled=10.0),
    } | changed
    return plan_stages(arguments.pop("prompts"), **arguments)


def test_with_rows_in_plenty_each_is_decoded_once() -> None:
    assert planned() == StagePlan(prompts=(100, 200, 300, 400), rows=(100, 200, 300, 400), replicates=1)


def test_replicates_take_what_rows_leave() -> None:
    assert planned(prompts=range(150)).replicates == 2
    assert planned(prompts=range(150), costs=TokenCosts(fixed=10.0, sampled=0.0)).replicates == 1


def test_max_tokens_cut_the_reserve_but_leave_one_stage() -> None:
    assert planned(max_tokens=2000).prompts[-1] == 200
    assert planned(max_tokens=1).prompts == (40,)


def test_rows_of_a_prompt_stay_in_one_stage() -> None:
    found = planned(prompts=[n // 2 for n in range(320)])
    assert (found.prompts, found.rows) == ((40, 80, 120, 160), (80, 160, 240, 320))


def test_a_plan_is_stored_and_read() -> None:
    assert StagePlan.from_json(planned().to_json()) == planned()


def test_conditions_take_all_rows_at_once(tmp_path: Path) -> None:
    assert planned(most_stages=1).prompts == (400,)
    result = run(tmp_path, TextEngine(small_gain), constraints={"terminates": ">= 0.5"}, **RESERVE)
    assert result.verdict is not None
    assert (result.verdict.rows, result.verdict.stages) == (160, 1)
    assert "stage" not in result.verdict.sentence.lower()
