"""Several named baselines: run in full, shown by name, and all compared with the winner where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.report import collect, render
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.holm import holm
from llmsearch_optuna.storage.row_record import score_table
from tests.optimize.studies import signature
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = {"max_new_tokens": 9, "do_sample": True, "temperature": FloatDistribution(0.3, 1.0)}
NAMED = {
    "authors": {"do_sample": True, "temperature": 1.5},
    "paper": {"do_sample": True, "temperature": 0.68},
    "plain": {"do_sample": False},
}


def run(tmp_path: Path, **options: Any) -> SearchResult:
    given: dict[str, Any] = {"n_trials": 10, "baselines": NAMED, "study_name": "s", **options}
    return search(
        TextEngine(), dataset(80), SPACE, metric=number_metric, progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", **{"holdout": 0.3} | given,
    )  # fmt: skip


def roles(result: SearchResult) -> list[str]:
    return [t.user_attrs["role"] for t in result.trials]


def test_they_run_in_full_under_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(tmp_path, try_first=[{"do_sample": True, "temperature": 0.5}])
    assert roles(result)[:4] == ["baseline", "baseline authors", "baseline paper", "try_first"]
    assert "'plain' decodes as the baseline does" in caplog.text
    assert [t.user_attrs["rows"] for t in result.trials[:4]] == ["56 of 56"] * 4
    assert result.trial_params(1)["temperature"] == 1.5
    assert {1, 2} <= {f.number for f in result.selection.finalists} | {0}
    assert "baseline authors" in set(result.trials_dataframe()["role"])
    assert "baseline authors" in render(collect(result))
    assert result.settings["baselines"]["authors"]["temperature"] == 1.5
    assert result.verdict is not None
    assert result.verdict.baselines == ()
    assert {0, result.best_trial.number} == set(result.opened.records.all_rows("holdout"))


def test_the_one_in_use_has_a_name_and_the_models_own_stands_beside_it(tmp_path: Path) -> None:
    result = run(tmp_path, baseline="authors", baselines={"authors": NAMED["authors"], "paper": NAMED["paper"]})
    assert result.baseline_params["temperature"] == 1.5
    assert "The baseline is 'authors' of baselines=" in result.settings["baseline_note"]
    # This engine recommends nothing, so its own configuration is greedy decoding, which is there already.
    assert roles(result)[:3] == ["baseline", "greedy", "baseline paper"]
    assert set(result.settings["baselines"]) == {"authors", "paper", "generation_config.json"}


class Recommending(TextEngine):
    def __init__(self) -> None:
        super().__init__()
        self.default_params = {"do_sample": True, "temperature": 0.9}


def test_what_the_authors_recommend_is_run_where_another_one_is_in_use(tmp_path: Path) -> None:
    result = search(
        Recommending(), dataset(40), SPACE, metric=number_metric, progress=False, baseline={"do_sample": False},
        holdout=0.3, baselines={"paper": NAMED["paper"]}, n_trials=3, study_name="s",
        storage=f"sqlite:///{tmp_path}/s.db",
    )  # fmt: skip
    assert roles(result) == ["baseline", "baseline paper", "baseline generation_config.json"]
    assert result.trial_params(2)["temperature"] == 0.9


def test_all_are_compared_on_the_holdout_and_corrected(tmp_path: Path) -> None:
    result = run(tmp_path, verdict_against="all")
    verdict, winner = result.verdict, result.best_trial.number
    assert verdict is not None
    compared = [b for b in verdict.baselines if b.trial != winner]
    assert {b.name for b in compared} >= {"plain", "authors"}
    order = [item.row for item in result.items.values() if item.part == "holdout"]
    for b in compared:
        sides = [score_table(result.records(number, "holdout"), order) for number in (b.trial, winner)]
        by_hand = compare(sides[0], sides[1], bounds=None, seed=42)
        assert b.difference == pytest.approx(by_hand.difference)
        assert b.p_value == pytest.approx(by_hand.p_value)
    assert [b.adjusted_p_value for b in verdict.baselines] == holm([b.p_value for b in verdict.baselines])
    assert f"Against all {len(verdict.baselines)} baselines together" in verdict.notes
    assert signature(run(tmp_path, verdict_against="all")) == signature(result)
    with pytest.raises(StudyError, match="verdict_against"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"baselines": [1]}, "must be a dict of names"),
        ({"baselines": {"a": 1}}, r"baselines\['a'\]=1 must be a dict"),
        ({"baselines": {"": {}}}, "is no name"),
        ({"baselines": {"baseline": {}}}, "'baseline' is what the one in use is called"),
        ({"baselines": {"a": {"temprature": 1}}}, r"baselines\['a'\]: .*temprature"),
        ({"baseline": "author"}, "did you mean 'authors'"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        run(tmp_path, **given)
