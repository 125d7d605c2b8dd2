"""A judge as a metric, behind a function, a tiny model, and a server that goes away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, judge, transient_errors
from llmsearch_optuna.api import score, search
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.report import collect
from tests.synthetic import TextEngine, dataset, unit

RUBRIC = "Is the number right?"


def said_of(prompt: str) -> str:
    """The answer that a judge's prompt holds."""
    found = re.search(r"Answer to be judged:\n(.*?)\n\nRate this", prompt, re.S)
    assert found is not None
    return found[1]


class Ratings:
    """A judge that rates numbers by their size, other texts by their length, and keeps what it is asked."""

    def __init__(self, *, noise: float = 0.0) -> None:
        self.asked: list[str] = []
        self.noise = noise
        self.is_away = False

    def __call__(self, prompts: list[str], params: dict[str, Any]) -> list[str]:
        if self.is_away:
            raise ConnectionError("away")
        self.asked += prompts
        seed = params.get("generation_seed") or 0
        return [self.rating(prompt, seed) for prompt in prompts]

    def rating(self, prompt: str, seed: int) -> str:
        said = said_of(prompt)
        is_number = said.replace(".", "", 1).isdigit()  # as the synthetic engine writes them, from 0 to 1
        rating = 1 + 3 * float(said) if is_number else len(said) % 3 + 2
        return f"{rating + self.noise * (unit(said, seed) > 0.5):.4f}"


def engine(function: Any) -> Any:
    function.name = getattr(function, "name", "ratings")
    return Engine.from_function(function)


def rated(metric: Any, answers: Sequence[str], **given: Any) -> list[float]:
    rows = [{"question": "?"}] * len(answers)
    found: list[float] = metric.score_rows(answers, given.get("references", [None] * len(answers)), rows)
    return found


def test_answers_are_rated_and_each_text_once() -> None:
    ratings = Ratings()
    metric = judge(engine(ratings), RUBRIC)
    assert rated(metric, ["a", "bb", "a", "ccc"]) == [3.0, 4.0, 3.0, 2.0]
    assert [said_of(prompt) for prompt in ratings.asked] == ["a", "bb", "ccc"]
    assert rated(metric, ["bb", "dddd"]) == [4.0, 3.0]
    assert [said_of(prompt) for prompt in ratings.asked] == ["a", "bb", "ccc", "dddd"]
    assert (metric.bounds, metric.name, metric.per_row) == ((1.0, 5.0), "judge", True)
    assert metric.judgements.counts == {"asked": 4, "remembered": 1, "unreadable": 0}


def test_what_is_judged_is_known_in_the_next_process_where_a_file_is_given(tmp_path: Path) -> None:
    first, second, other = Ratings(), Ratings(), Ratings()
    rated(judge(engine(first), RUBRIC, cache=tmp_path / "j.db"), ["a", "bb"])
    assert rated(judge(engine(second), RUBRIC, cache=tmp_path / "j.db"), ["a", "bb", "ccc"]) == [3.0, 4.0, 2.0]
    assert [said_of(prompt) for prompt in second.asked] == ["ccc"]
    rated(judge(engine(other), "Another rubric", cache=tmp_path / "j.db"), ["a"])
    assert len(other.asked) == 1, "another rubric is another question"


def test_repeats_are_averaged_and_their_variance_is_known() -> None:
    metric = judge(
        engine(Ratings(noise=1.0)), RUBRIC, repeats=8, params={"do_sample": True, "temperature": 1.0, "top_k": 0}
    )
    scores = rated(metric, ["a", "bb", "ccc"])
    assert all(2.0 <= value <= 5.0 for value in scores)
    assert any(value % 1 for value in scores)
    assert 0 < metric.judgements.variance_of(["a", "bb", "ccc"]) <= 0.29, "of a number that is 0 or 1"
    assert metric.judgements.variance_of(["a", "other", "others"]) is None, "most of them are not known"


def test_a_judge_that_does_not_say_a_number_is_asked_again_and_then_the_row_fails() -> None:
    class Talks(Ratings):
        def rating(self, prompt: str, seed: int) -> str:
            if said_of(prompt) == "never" or (said_of(prompt) == "second" and "Nothing but" not in prompt):
                return "Well, that depends."
            return "4"

    talks = Talks()
    metric = judge(engine(talks), RUBRIC)
    assert rated(metric, ["second", "first"]) == [4.0, 4.0]
    assert len(talks.asked) == 3
    with pytest.raises(MetricError, match="said 'Well, that depends.' where a number from 1 to 5") as caught:
        rated(metric, ["first", "never"])
    assert caught.value.rows == (1,)
    assert metric.judgements.counts["unreadable"] == 1


def test_a_judge_that_is_away_is_not_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0,))
    ratings = Ratings()
    metric = judge(engine(ratings), RUBRIC)
    ratings.is_away = True
    with pytest.raises(EngineUnavailableError):
        rated(metric, ["a"])
    ratings.is_away = False
    assert rated(metric, ["a"]) == [3.0]


def test_a_tiny_model_judges_as_it_decodes(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """It never says a number; what it says is what it decodes for the same prompt."""
    metric = judge(tiny_llama, RUBRIC, tokenizer=tiny_tokenizer, params={"max_new_tokens": 6})
    with pytest.raises(MetricError) as caught:
        rated(metric, ["Yes."])
    prompt = metric.judgements.prompt.text({"question": "?"}, None, "Yes.", is_second=True)
    plain = score(tiny_llama, [{"p": prompt}], {"max_new_tokens": 6}, tiny_tokenizer, prompt="{p}", metric=_none)
    assert repr(plain.completions[0].text) in str(caught.value)


def _none(predictions: list[str], references: list[Any]) -> list[float]:
    return [0.0 for _ in predictions]


def studied(folder: Path, metric: Any, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "space": {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        "n_trials": 6,
        "storage": f"sqlite:///{folder}/s.db",
        "study_name": "study",
        "progress": False,
        "model": TextEngine(),
    } | changed
    return search(given.pop("model"), dataset(60), given.pop("space"), metric=metric, **{"holdout": 0.3} | given)


def test_a_study_knows_its_judges_noise_and_judges_nothing_twice(tmp_path: Path) -> None:
    sampled = {"do_sample": True, "temperature": 1.0}
    first = Ratings(noise=1.0)
    result = studied(tmp_path, judge(engine(first), RUBRIC, repeats=3, params=sampled))
    note = collect(result).baseline_note
    assert "of 3 ratings a text, this is" in note
    assert "of the variance of the difference by row" in note
    assert len(set(first.asked)) * 3 == len(first.asked), "three times each text, never more"
    second = Ratings(noise=1.0)
    again = studied(tmp_path, judge(engine(second), RUBRIC, repeats=3, params=sampled), n_trials=6)
    assert {said_of(prompt) for prompt in second.asked} <= {"a text", *_tried(result)}, "only the metric is tried"
    assert [t.value for t in again.trials] == [t.value for t in result.trials]
    assert collect(again).baseline_note == note


def _tried(result: Any) -> list[str]:
    """What a metric is tried with before a study: the first references, and an empty text."""
    return ["", *(str(result.items[row].reference) for row in (0, 1))]


def test_peoples_labels_correct_the_difference(tmp_path: Path) -> None:
    """The judge favours large numbers; people do not."""
    ratings = Ratings()
    result = studied(tmp_path, judge(engine(ratings), RUBRIC), holdout=0.5)
    rows = sorted(row for row, item in result.items.items() if item.part == "holdout")
    winner = result.looks[-1].winner
    records = {n: result.opened.records.rows("holdout", n) for n in (0, winner)}
    labels = [((r.row, r.text), 3.0) for found in records.values() for r in found if r.row in rows[:12]]
    labelled = studied(tmp_path, judge(engine(ratings), RUBRIC, labels=labels), holdout=0.5)
    note = collect(labelled).baseline_note
    assert "Corrected by people's labels of 12 held-out rows" in note
    found = re.search(r"a difference of (\S+) \(95% interval (\S+) to (\S+)\); the judge alone says (\S+)\.", note)
    assert found is not None
    mean, low, high, judged = (float(number) for number in found.groups())
    assert low < mean < high
    assert abs(mean) < abs(judged)
    few = studied(tmp_path, judge(engine(ratings), RUBRIC, labels=labels[:2]), holdout=0.5)
    assert "have people's labels for the answers of both sides; a corrected" in collect(few).baseline_note


def test_the_engine_of_the_search_cannot_judge_itself(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    shared = Engine(tiny_llama, tiny_tokenizer)
    metric = judge(shared, RUBRIC)
    for given in (metric, {metric: 1.0}):
        with pytest.raises(InputError, match="so that it has an engine of its own"):
            studied(tmp_path, given, model=shared, prompt="{prompt}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rubric": " "}, "must say in words"),
        ({"scale": (5, 1)}, "must be below"),
        ({"scale": 5}, "must be two numbers"),
        ({"repeats": 0}, "from 1 to 65,536"),
        ({"labels": ["text"]}, "must be a pair"),
        ({"labels": [("text", 9)]}, "must have a score from 1 to 5"),
        ({"labels": [(3, 4)]}, "must name an answer's text"),
        ({"params": {"temprature": 1}}, "temprature"),
    ],
)
def test_wrong_arguments_are_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(engine(Ratings()), **{"rubric": RUBRIC, **given})
    with pytest.raises(TypeError, match="no argument 'served_modl'"):
        judge(engine(Ratings()), RUBRIC, served_modl="m")
