"""`mean_logprob`: how likely a model finds what it wrote, as the scorer of the best of several samples."""

from __future__ import annotations

from typing import Any

import pytest

from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.aggregates import Aggregate
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import Answers, MetricError
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.objectives import Objectives


def completion(text: str, logprob: float | None, tokens: int) -> Completion:
    return Completion(text, tuple(range(tokens)), cumulative_logprob=logprob)


def answers(*samples: Completion) -> Answers:
    return Answers(
        predictions=[samples[0].text],
        references=["b"],
        rows=[{"prompt": "p", "reference": "b"}],
        completions=[samples[0]],
        samples=[samples],
    )


def best(scorer: Any) -> Metric:
    made = Aggregate.of("best", scorer=scorer)
    return made.over(
        Metric.of("exact_match").check(["b"], [{"prompt": "p"}]), [{"prompt": "p"}], direction="maximize", hidden=[]
    )


def test_the_likeliest_by_token_is_the_best_however_long_it_is() -> None:
    samples = answers(completion("a", -3.0, 2), completion("b", -4.0, 4), completion("c", -1.1, 1))
    metric = best("mean_logprob")
    assert metric.reads_logprobs
    assert metric.scores_of(samples) == [1.0]
    assert [c.mean_logprob for c in samples.sampled[0]] == [-1.5, -1.0, -1.1]
    assert Completion("x").mean_logprob is None


def test_it_can_be_weighed_with_other_scorers_and_read_by_a_function() -> None:
    samples = answers(completion("a", -1.0, 1), completion("b", -9.0, 1))
    weighed = best({Metric.of("regex", options={"pattern": "b"}): 10.0, "mean_logprob": 1.0})
    assert weighed.reads_logprobs
    assert weighed.scores_of(samples) == [1.0]

    def least_likely(predictions: list[str], references: list[Any], completions: list[Completion]) -> list[float]:
        return [-(c.cumulative_logprob or 0.0) for c in completions]

    assert not best(least_likely).reads_logprobs
    least_likely.reads_logprobs = True  # type: ignore[attr-defined]
    assert best(least_likely).reads_logprobs
    assert best(least_likely).scores_of(samples) == [1.0]


def test_a_completion_that_says_nothing_of_it_fails_in_words() -> None:
    with pytest.raises(MetricError, match="does not say how likely its tokens are"):
        best("mean_logprob").scores_of(answers(completion("a", -1.0, 1), completion("b", None, 1)))


def test_it_is_neither_a_condition_nor_an_objective() -> None:
    with pytest.raises(InputError, match="says nothing between settings"):
        Constraints.of({"mean_logprob": ">= -1"})
    with pytest.raises(InputError, match="says nothing between settings"):
        Objectives.of(("score", "mean_logprob"), "maximize")
