"""One score of several samples: pass@k against all subsets, votes against a plain count, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.aggregates import Aggregate, AggregatedMetric, majority, pass_at
from llmsearch_optuna.metrics.metric import Metric, answer_of
from llmsearch_optuna.metrics.scoring import Answers, MetricError

ROWS = [{"question": "2 + 2", "reference": "4"}, {"question": "2 + 5", "reference": "7"}]


def answers(*samples: Sequence[str], references: Sequence[str] = ("4", "7")) -> Answers:
    completions = [[Completion(text) for text in of_row] for of_row in samples]
    return Answers(
        predictions=[of_row[0].text for of_row in completions],
        references=references[: len(samples)],
        rows=ROWS[: len(samples)],
        completions=[of_row[0] for of_row in completions],
        numbers=[10, 11][: len(samples)],
        samples=completions,
    )


def over(aggregate: str, metric: Any = "last_number", **given: Any) -> Metric:
    checked = Metric.of(metric).check([row["reference"] for row in ROWS], ROWS)
    return Aggregate.of(aggregate, **given).over(checked, ROWS, direction="maximize", hidden=("reference",))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_success(passed: list[bool], k: int) -> None:
    if k > len(passed):
        with pytest.raises(InputError, match=f"pass@{k} takes at least {k} samples"):
            pass_at(k, samples=len(passed), passed=sum(passed))
        return
    subsets = [any(subset) for subset in itertools.combinations(passed, k)]
    found = pass_at(k, samples=len(passed), passed=sum(passed))
    assert found == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9))
def test_the_majority_is_what_a_plain_count_says(votes: list[str | None]) -> None:
    place = majority(votes)
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        assert place == 0
        return
    assert counts[votes[place]] == max(counts.values()), "no answer has more votes"
    before = {vote for vote in votes[:place] if vote is not None}
    assert all(counts[vote] < counts[votes[place]] for vote in before), "of equals the one that comes first"


def test_numbers_vote_by_value_and_texts_without_one_do_not() -> None:
    metric = over("majority")
    asked = answers(["so 5", "I do not know", "$4.00", "it is 4"], ["7", "8"])
    assert metric.scores_of(asked) == [1.0, 1.0]
    assert isinstance(metric, AggregatedMetric)
    assert metric.chosen(asked) == [2, 0]
    assert [list(map(str, of_row)) for of_row in metric.votes(asked)] == [["5", "None", "4.00", "4"], ["7", "8"]]
    assert metric.scores_of(answers(["none", "at all"])) == [0.0]


@pytest.mark.parametrize(
    ("metric", "same", "other"),
    [
        ("exact_match", [" a  b", "a b\n"], ["A b"]),
        ("f1", ["The answer!", "answer"], ["answers"]),
        ("contains", ["Yes", " yes "], ["no"]),
        ("json_valid", ['{"a": 1, "b": [true, "x  y"]}', '{"b":[true,"x y"],"a":1.0}'], ['{"a": true}', '{"a": 1}']),
        ("tool_call", ['<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "[f(x=1)]"], ["[f(x=2)]", "f"]),
        ("rouge1", ["One\ntwo", "one two"], ["two one"]),
    ],
)
def test_built_in_metrics_know_what_is_the_same_answer(metric: str, same: list[str], other: list[str]) -> None:
    found = Metric.of(metric)
    kept = {answer_of(found, text) for text in same}
    assert len(kept) == 1
    assert None not in kept
    assert all(answer_of(found, text) not in kept for text in other)


@pytest.mark.parametrize(("metric", "text"), [("last_number", "none"), ("json_valid", "{"), ("exact_match", " \n")])
def test_a_text_without_an_answer_does_not_vote(metric: str, text: str) -> None:
    assert answer_of(Metric.of(metric), text) is None


def test_votes_see_what_postprocessing_leaves() -> None:
    metric = Metric.of("exact_match").after(lambda text: text.split(":")[-1])
    assert answer_of(metric, "first: 4") == answer_of(metric, "second: 4") == "4"


def test_a_users_metric_may_say_what_a_text_answers() -> None:
    def first_letter(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [float(p[:1] == str(r)[:1]) for p, r in zip(predictions, references, strict=True)]

    first_letter.answer = lambda text: text[:1]  # type: ignore[attr-defined]
    metric = over("majority", first_letter)
    assert metric.scores_of(answers(["5 x", "4 a", "4 b"])) == [1.0]
    given = Metric.of(lambda predictions, references: [1.0 for _ in predictions], answer=lambda text: text[-1:])
    assert answer_of(given, "ab") == "b"
    assert "answer" in given.description


def test_an_answer_that_cannot_be_counted_names_the_row() -> None:
    metric = over("majority", Metric.of("exact_match", answer=lambda text: [text]))  # type: ignore[arg-type, return-value]
    with pytest.raises(MetricError, match="row 10 .exact_match.: TypeError") as caught:
        metric.scores_of(answers(["a", "b"]))
    assert caught.value.rows == (10,)


def test_the_mean_and_pass_at_k_of_scores() -> None:
    asked = answers(["4", "5", "4", "x"], ["1", "1", "1", "7"])
    assert Metric.of("last_number").scores_of(asked) == [0.5, 0.25]
    assert over("pass@1").scores_of(asked) == [0.5, 0.25]
    assert over("pass").scores_of(asked) == [1.0, 1.0]
    assert over("pass@2").scores_of(asked) == pytest.approx([1 - 1 / 6, 0.5])
    half = over("pass@1", "f1", pass_score=0.5)
    assert half.scores_of(answers(["4 x", "5", "4 x y z", "4"])) == [0.5]
    assert half.bounds == (0.0, 1.0)


def test_one_text_stands_for_as_many_equal_ones() -> None:
    for aggregate in ("pass", "pass@3", "majority"):
        assert over(aggregate).scores_of(answers(["4"], ["x"])) == [1.0, 0.0]


def test_parts_of_a_weighted_metric_are_those_of_the_chosen_text_or_means() -> None:
    weights = {"last_number": 3.0, "terminates": 1.0}
    asked = answers(["5", "4", "4"])
    scores, parts = over("majority", weights).scores_and_parts(asked)
    assert (scores, parts) == ([1.0], {"last_number": [1.0], "terminates": [1.0]})
    scores, parts = Metric.of(weights).scores_and_parts(asked)
    assert parts["last_number"] == pytest.approx([2 / 3])
    assert scores == pytest.approx([0.75 * 2 / 3 + 0.25])
    rates, parts = over("pass@1", weights, pass_score=0.9).scores_and_parts(asked)
    assert rates == pytest.approx([2 / 3])
    assert parts["last_number"] == pytest.approx([2 / 3])


def test_the_best_is_chosen_without_the_reference() -> None:
    seen: list[dict[str, Any]] = []

    def longest(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[dict[str, Any]]) -> list[float]:
        assert set(references) == {None}
        seen.extend(rows)
        return [float(len(text)) for text in predictions]

    asked = answers(["4", "no 5", "is 4"], ["8 or 7", "7"])
    assert over("best", scorer=longest).scores_of(asked) == [0.0, 1.0]
    assert all(set(row) == {"question"} for row in seen)
    assert over("best", scorer=len).scores_of(asked) == [0.0, 1.0]
    assert over("best", scorer=lambda text: -len(text)).scores_of(asked) == [1.0, 1.0]
    assert over("best", scorer="json_valid").scores_of(asked) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"aggregate": "median"}, "aggregate='median' must be 'mean', 'pass'"),
        ({"aggregate": "pass@0"}, "aggregate='pass@0' must be"),
        ({"aggregate": 3}, "aggregate=3 must be"),
        ({"aggregate": "best"}, "aggregate='best' needs scorer="),
        ({"aggregate": "majority", "scorer": "json_valid"}, "scorer='json_valid' has no effect with"),
        ({"scorer": len}, "has no effect with aggregate='mean'"),
        ({"aggregate": "mean", "pass_score": 0.5}, "pass_score=0.5 has no effect with aggregate='mean'"),
        ({"aggregate": "best", "scorer": "no_such"}, "unknown metric 'no_such'"),
    ],
)
def test_what_cannot_be_made_of_samples_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Aggregate.of(**given)


@pytest.mark.parametrize("scorer", ["rouge1", "json_fields", "bleu", "tool_call"])
def test_a_scorer_that_needs_the_reference_is_refused(scorer: str) -> None:
    with pytest.raises(InputError, match=f"scorer='{scorer}' chooses a sample without the reference"):
        over("best", scorer=scorer)


def test_samples_need_scores_by_row_and_passes_need_high_ones() -> None:
    with pytest.raises(InputError, match="aggregate='majority' makes one score of a row's samples, and bleu"):
        over("majority", "bleu")
    checked = Metric.of("exact_match").check(["4"], ROWS[:1])
    with pytest.raises(InputError, match="lower ones are better"):
        Aggregate.of("pass").over(checked, ROWS[:1], direction="minimize", hidden=None)
