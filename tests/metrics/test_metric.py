"""Metrics: the forms they come in, the trial before decoding, and what is said when one fails later."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import DecodingError, InputError
from llmsearch_optuna.metrics.built_in import rouge
from llmsearch_optuna.metrics.factories import BUILT_IN
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.metrics.text_scores import find_last_number

ROWS: list[dict[str, Any]] = [{"text": "a", "answer": "yes 1"}, {"text": "b", "answer": "no 2"}]
REFERENCES = ["yes 1", "no 2"]


def lengths(predictions: list[str], references: list[str]) -> list[float]:
    return [float(len(prediction)) for prediction in predictions]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_metrics_pass_their_own_trial_and_score_the_reference_best(name: str) -> None:
    references = ["The cat sat on the mat in room 12.", "Ben will arrive at 7 tomorrow."]
    metric = Metric.of(name).check(references, ROWS)
    assert metric.bounds is not None
    assert metric.score_corpus(references, references, ROWS) == pytest.approx(metric.bounds[1])
    assert metric.score_corpus(["", ""], references, ROWS) == pytest.approx(0.0)
    json.dumps(dict(metric.description))


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=4))
def test_built_in_scores_stay_within_their_bounds(pairs: list[tuple[str, str]]) -> None:
    predictions, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for name in set(BUILT_IN) - {"last_number"}:
        metric = Metric.of(name)
        assert metric.bounds is not None
        low, high = metric.bounds
        assert low <= metric.score_corpus(predictions, references, ROWS * 2) <= high + 1e-6


def test_rouge_is_the_f_measure_of_the_package() -> None:
    # 2 of 3 predicted words stand among 4 expected ones: precision 2/3, recall 2/4
    assert Metric.of("rouge1").score_rows(["cat sat there"], ["the cat sat down"], ROWS[:1]) == [pytest.approx(4 / 7)]
    assert Metric.of("rouge2").score_rows(["cat sat there"], ["the cat sat down"], ROWS[:1]) == [pytest.approx(2 / 5)]


def test_rouge_stems_unless_told_otherwise() -> None:
    assert Metric.of("rouge1").score_rows(["walks"], ["walking"], ROWS[:1]) == [1.0]
    assert rouge("rouge1", use_stemmer=False).score_rows(["walks"], ["walking"], ROWS[:1]) == [0.0]
    assert rouge("rouge1").description != rouge("rouge1", use_stemmer=False).description


def test_bleu_is_of_the_corpus_and_its_sentence_form_is_by_row() -> None:
    predictions, references = (
        ["the cat sat on the mat", "a dog"],
        ["the cat sat on the mat", "a dog barks loudly today"],
    )
    assert Metric.of("bleu").per_row is False
    scores = Metric.of("sentence_bleu").score_rows(predictions, references, ROWS)
    assert scores[0] == pytest.approx(100.0)
    assert 0 < scores[1] < 100
    assert Metric.of("bleu").score_corpus(predictions, references, ROWS) != pytest.approx(sum(scores) / 2)


def test_several_references_count_by_the_best_one() -> None:
    references = [["no", "yes"], ["never", "maybe"]]
    assert Metric.of("exact_match").score_rows(["yes", "yes"], references, ROWS) == [1.0, 0.0]
    assert Metric.of("bleu").check(references, ROWS).score_corpus(["yes", "maybe"], references, ROWS) >= 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes $1,234.50 a year.", "1234.5"),
        ("16 - 3 - 4 = 9 eggs\n#### 18", "18"),
        ("that leaves 10-5", "5"),
        ("the answer is -5", "-5"),
        ("it costs -$7", "-7"),
        ("3, 4", "4"),
        ("about .5 litres", "0.5"),
        ("in 2024.", "2024"),
        ("1,2345", "2345"),
        ("no number at all", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert find_last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9))
def test_the_last_number_is_found_however_it_is_written(number: int) -> None:
    assert find_last_number(f"so x is {number:,}.") == number
    assert find_last_number(f"so x is {number}") == number


def test_last_number_compares_numbers_and_not_texts() -> None:
    metric = Metric.of("last_number")
    assert metric.score_rows(["it is 18.00 dollars", "17"], ["#### 18", 18], ROWS) == [1.0, 0.0]


def test_last_number_refuses_a_reference_without_a_number() -> None:
    with pytest.raises(InputError, match="has no number"):
        Metric.of("last_number").check(["eighteen", "18"], ROWS)


def test_f1_normalises_as_squad_does() -> None:
    scores = Metric.of("f1").score_rows(["The big, red dog!", "", "a"], ["a red dog", "x", "the"], ROWS * 2)
    assert scores == [pytest.approx(0.8), 0.0, 1.0]


def test_contains_ignores_case_and_white_space() -> None:
    assert Metric.of("contains").score_rows(["So: NEW\n York."], ["new york"], ROWS[:1]) == [1.0]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown metric 'rogue1': did you mean 'rouge1'\?"):
        Metric.of("rogue1")
    with pytest.raises(InputError, match="did you mean 'rougeL'"):
        Metric.of("rougel")


def test_a_function_by_row_and_one_of_the_corpus_are_told_apart() -> None:
    by_row = Metric.of(lengths).check(REFERENCES, ROWS)
    of_all = Metric.of(lambda predictions, references: sum(map(len, predictions)) / 2).check(REFERENCES, ROWS)
    assert (by_row.per_row, of_all.per_row) == (True, False)
    assert by_row.score_rows(["ab", "abc"], REFERENCES, ROWS) == [2.0, 3.0]
    assert of_all.score_corpus(["ab", "abc"], REFERENCES, ROWS) == 2.5
    with pytest.raises(InputError, match="scores all rows at once"):
        of_all.score_rows(["ab", "abc"], REFERENCES, ROWS)


@pytest.mark.parametrize("answer", [np.array([0.5, 1.0]), torch.tensor([0.5, 1.0]), (0.5, np.float32(1)), [0.5, True]])
def test_arrays_and_tensors_are_scores_too(answer: Any) -> None:
    metric = Metric.of(lambda predictions, references: answer).check(REFERENCES, ROWS)
    assert metric.score_rows(["a", "b"], REFERENCES, ROWS) == [0.5, 1.0]


@pytest.mark.parametrize("answer", [np.float32(0.5), torch.tensor(0.5), np.array(0.5), 1])
def test_one_number_of_any_library_is_a_corpus_score(answer: Any) -> None:
    metric = Metric.of(lambda predictions, references: answer).check(REFERENCES, ROWS)
    assert metric.per_row is False
    assert metric.score_corpus(["a", "b"], REFERENCES, ROWS) == float(answer)


def test_a_scorer_gets_a_dict_a_row() -> None:
    def scorer(y_true: list[dict[str, str]], y_pred: list[str]) -> list[float]:
        return [float(row["answer"] == text) for row, text in zip(y_true, y_pred, strict=True)]

    metric = Metric.of(scorer)
    assert metric.check(REFERENCES, ROWS).score_rows(["yes 1", "x"], REFERENCES, ROWS) == [1.0, 0.0]
    several = [{"answer": "A", "id": 1}, {"answer": "B", "id": 2}]
    assert metric.check(several, ROWS).score_rows(["A", "B"], several, ROWS) == [1.0, 1.0]


def test_references_come_first_where_the_function_names_them_so() -> None:
    def swapped(references: list[str], predictions: list[str]) -> list[float]:
        return [float(len(text)) for text in predictions]

    assert Metric.of(swapped).check(REFERENCES, ROWS).score_rows(["abc", ""], REFERENCES, ROWS) == [3.0, 0.0]


class Overlap:
    name = "overlap"

    def compute(self, *, predictions: list[str], references: list[str]) -> dict[str, Any]:
        hits = [float(a == b) for a, b in zip(predictions, references, strict=True)]
        return {"overlap": sum(hits) / len(hits), "count": len(hits)}


def test_whatever_has_compute_is_a_metric() -> None:
    metric = Metric.of(Overlap()).check(REFERENCES, ROWS)
    assert (metric.name, metric.per_row) == ("overlap", False)
    assert metric.score_corpus(["yes 1", "x"], REFERENCES, ROWS) == 0.5
    by_row = Metric.of(Overlap(), per_row=True, bounds=(0, 1)).check(REFERENCES, ROWS)
    assert by_row.score_rows(["yes 1", "x"], REFERENCES, ROWS) == [1.0, 0.0]
    assert Metric.of(Overlap(), key="count").check(REFERENCES, ROWS).score_corpus(["a", "b"], REFERENCES, ROWS) == 2


def test_which_of_several_results_counts_is_asked_for_plainly() -> None:
    class Several:
        name = "several"

        def compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
            return {"rouge1": 0.5, "rouge2": 0.25}

    complaint = r"^metric 'several' gives several results: choose one of rouge1, rouge2 with metric=Metric.of"
    with pytest.raises(InputError, match=complaint + r"\(\.\.\., key='rouge1'\)"):
        Metric.of(Several()).check(REFERENCES, ROWS)
    with pytest.raises(InputError, match="^metric 'several' has no result 'rougeL'"):
        Metric.of(Several(), key="rougeL").check(REFERENCES, ROWS)
    assert Metric.of(Several(), key="rouge2").check(REFERENCES, ROWS).score_corpus(["a", "b"], REFERENCES, ROWS) == 0.25


def test_a_module_of_evaluate_works(tmp_path: Any) -> None:
    import evaluate

    script = tmp_path / "half_match" / "half_match.py"
    script.parent.mkdir()
    script.write_text(
        "import datasets\nimport evaluate\n"
        "class HalfMatch(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        features = datasets.Features({'predictions': datasets.Value('string'),"
        " 'references': datasets.Value('string')})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'half_match': sum(a == b for a, b in zip(predictions, references)) / len(predictions)}\n"
    )
    module = evaluate.load(str(script.parent), cache_dir=str(tmp_path / "cache"))
    metric = Metric.of(module).check(REFERENCES, ROWS)
    assert metric.score_corpus(["yes 1", "x"], REFERENCES, ROWS) == 0.5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([1.0], "returned 1 scores for 2 rows"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 2 rows"),
        ([1.0, math.nan], "returned nan"),
        (math.inf, "returned inf"),
        ([1.0, None], "None, which is no number"),
        (None, "returned None"),
        ("0.5", "returned '0.5'"),
        ({"f1": 1.0}, "f1"),
        ([0.5, 1.5], "outside its bounds"),
    ],
)
def test_a_broken_metric_is_refused_before_decoding(answer: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        Metric.of(lambda predictions, references: answer, name="odd", bounds=(0, 1)).check(REFERENCES, ROWS)
    assert "'odd'" in str(caught.value)


def test_a_metric_that_raises_is_refused_with_what_it_got() -> None:
    def broken(predictions: list[str], references: list[str]) -> list[float]:
        raise KeyError("summary")

    with pytest.raises(InputError, match=r"(?s)'broken' fails on the first two rows: KeyError.*'yes 1', 'no 2'"):
        Metric.of(broken).check(REFERENCES, ROWS)


def test_one_row_is_enough_to_tell_the_form() -> None:
    assert Metric.of(lengths).check(REFERENCES[:1], ROWS[:1]).per_row is True


def test_no_row_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no rows to be tried on"):
        Metric.of("rouge1").check([], [])


def test_missing_references_are_said() -> None:
    with pytest.raises(InputError, match="give reference="):
        Metric.of("rouge1").check([None, None], ROWS)
    with pytest.raises(InputError, match="columns answer, id"):
        Metric.of("f1").check([{"answer": "a", "id": 1}] * 2, ROWS)


def test_a_later_failure_names_the_row() -> None:
    def picky(predictions: list[str], references: list[str]) -> list[float]:
        return [1.0 / len(prediction.split()) for prediction in predictions]

    metric = Metric.of(picky).check(REFERENCES, ROWS)
    with pytest.raises(
        MetricError, match=r"'picky' raised ZeroDivisionError.* on row 17 \(its prediction: ''\)"
    ) as caught:
        metric.score_rows(["a", ""], REFERENCES, ROWS, numbers=[5, 17])
    assert caught.value.rows == (17,)
    assert isinstance(caught.value, DecodingError)


def test_a_later_nan_and_a_later_wrong_length_name_the_rows() -> None:
    metric = Metric.of(lambda p, r: [math.nan if text == "bad" else 1.0 for text in p], name="m").check(
        REFERENCES, ROWS
    )
    with pytest.raises(MetricError, match="returned nan, which is no finite number on row 1"):
        metric.score_rows(["good", "bad"], REFERENCES, ROWS)
    short = Metric.of(lambda p, r: [1.0] * min(len(p), 2), name="m").check(REFERENCES, ROWS)
    with pytest.raises(MetricError, match="returned 2 scores for 3 rows on rows 0, 1, 2"):
        short.score_rows(["a", "b", "c"], [*REFERENCES, "x"], [*ROWS, {}])


def test_a_metric_that_cannot_take_empty_text_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    metric = Metric.of(lambda p, r: [1 / len(text) for text in p], name="inverse")
    with caplog.at_level("WARNING", logger="llmsearch_optuna.metrics.preflight"):
        metric.check(REFERENCES, ROWS)
    assert "'inverse' raises ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("bounds", [(1, 0), (0,), "ab", 3])
def test_bounds_must_be_two_rising_numbers(bounds: Any) -> None:
    with pytest.raises(InputError, match="bounds="):
        Metric.of(lengths, bounds=bounds)


def test_bounds_may_stand_on_the_function() -> None:
    def judged(predictions: list[str], references: list[str]) -> list[float]:
        return [0.5] * len(predictions)

    judged.bounds = (0, 1)  # type: ignore[attr-defined]
    assert Metric.of(judged).bounds == (0.0, 1.0)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(InputError, match="is no metric"):
        Metric.of(3.5)


def test_functions_count_by_their_source_or_their_name() -> None:
    one, other = Metric.of(lambda p, r: [1.0]), Metric.of(lambda p, r: [2.0])  # two lambdas on one line
    assert one.description == {"source": "lambda p, r: [1.0]"}
    assert other.description == {"source": "lambda p, r: [2.0]"}
    assert Metric.of(lengths).description["source"].startswith("def lengths")
    assert Metric.of(lengths, name="length v1").description == {"name": "length v1"}


@pytest.mark.parametrize("score", [10**400, -(10**5000), [10**400, 0], [0, 10**5000]], ids=list("abcd"))
def test_a_whole_number_that_no_float_holds_is_told(score: Any) -> None:
    with pytest.raises(InputError, match="which is too large"):
        Metric.of(lambda predictions, references: score).check(["a", "b"], [{}, {}])


def test_a_metric_that_would_end_the_program_is_told() -> None:
    def leaving(predictions: Any, references: Any) -> Any:
        raise SystemExit(2)

    with pytest.raises(InputError, match="fails on the first two rows: SystemExit: 2"):
        Metric.of(leaving).check(["a", "b"], [{}, {}])
