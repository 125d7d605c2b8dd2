"""A judge beside what else a search can be asked for: samples, prompts, halves, conditions, objectives."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, judge
from llmsearch_optuna.errors import InputError
from tests.judging.test_judge import RUBRIC, Ratings, engine, said_of, studied
from tests.synthetic import number_metric


def rating_of(text: str) -> float:
    return round(1 + 3 * float(text), 4)


def test_the_best_of_several_samples_by_a_judge_is_scored_by_the_metric(tmp_path: Path) -> None:
    ratings = Ratings()
    found = studied(
        tmp_path, number_metric, samples=3, aggregate="best", scorer=judge(engine(ratings), RUBRIC), n_trials=3
    )
    records = found.records(2)
    assert {len(r.samples) for r in records} == {3}
    assert [r.score for r in records] == [max(float(s.text or "") for s in r.samples) for r in records]


def test_every_sample_is_judged_and_their_mean_is_the_score(tmp_path: Path) -> None:
    ratings = Ratings()
    found = studied(tmp_path, judge(engine(ratings), RUBRIC), samples=3, n_trials=3, holdout="cross")
    for record in found.records(2):
        judged = [rating_of(sample.text or "") for sample in record.samples]
        assert record.score == pytest.approx(statistics.fmean(judged))
    assert len(set(ratings.asked)) == len(ratings.asked), "the same text of the same row is judged once"


def test_prompts_are_judged_alike_since_the_judge_sees_the_row_and_the_answer(tmp_path: Path) -> None:
    ratings = Ratings()
    found = studied(
        tmp_path, judge(engine(ratings), RUBRIC), prompt=["Say {prompt}", "Answer {prompt} shortly"], n_trials=6
    )
    assert len({t.user_attrs["params"]["prompt"] for t in found.trials}) == 2
    assert not any("shortly" in prompt for prompt in ratings.asked)
    assert {said_of(prompt) for prompt in ratings.asked} >= {r.text for r in found.records(0)}


def test_a_judges_mean_may_be_a_condition_and_an_objective(tmp_path: Path) -> None:
    metric = judge(engine(Ratings()), RUBRIC)
    held = studied(tmp_path, number_metric, constraints={metric: ">= 1.5"}, n_trials=3)
    records = held.records(0)
    mean = statistics.fmean(rating_of(r.text or "") for r in records)
    assert held.trials[0].user_attrs["conditions"]["judge"] == pytest.approx(mean)
    (tmp_path / "front").mkdir()
    front = studied(tmp_path / "front", number_metric, objectives=("score", metric), n_trials=3)
    assert front.trials[0].values[1] == pytest.approx(mean)


@pytest.mark.parametrize("place", ["scorer", "constraints", "objectives"])
def test_the_searchs_engine_judges_nowhere(
    place: str, tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    shared = Engine(tiny_llama, tiny_tokenizer)
    metric = judge(shared, RUBRIC)
    given: dict[str, Any] = {
        "scorer": {"aggregate": "best", "samples": 2, "scorer": metric},
        "constraints": {"constraints": {metric: ">= 2"}},
        "objectives": {"objectives": ("score", metric)},
    }[place]
    with pytest.raises(InputError, match="so that it has an engine of its own"):
        studied(tmp_path, number_metric, model=shared, prompt="{prompt}", **given)
