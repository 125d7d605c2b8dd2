"""Metrics, callbacks and other functions of users that raise what none should, are away, or change what they get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from llmsearch_optuna import transient_errors
from llmsearch_optuna.errors import EngineUnavailableError, InputError, LlmsearchError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import run, signature
from tests.synthetic import TextEngine, dataset, number_metric


class Stop(BaseException):
    """As trio's and anyio's Cancelled."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0, 0.0))


class Judge:
    """A metric that asks a service, which is away from the n-th call on."""

    bounds = (0.0, 1.0)
    __name__ = "judge"

    def __init__(self, after: int, error: BaseException | None) -> None:
        self.asked, self.after, self.error = 0, after, error

    def __call__(self, predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        self.asked += 1
        if self.error is not None and self.asked > self.after:
            raise self.error
        return number_metric(predictions, references)


def judged(folder: Path, judge: Judge, name: str) -> Any:
    metric = Metric.of(judge, name="judge")
    return run(folder, TextEngine(), name=name, metric=metric, n_trials=5)


@pytest.mark.parametrize(
    ("after", "error", "kind"),
    [
        (5, ConnectionRefusedError("nobody listens"), EngineUnavailableError),
        (25, ConnectionRefusedError("nobody listens"), EngineUnavailableError),
        (5, asyncio.CancelledError(), EngineUnavailableError),
        (25, GeneratorExit(), EngineUnavailableError),
        (5, Stop("the event loop ends"), EngineUnavailableError),
        (25, KeyboardInterrupt(), StudyInterrupted),
    ],
)
def test_a_metric_whose_service_is_away_ends_the_study_and_burns_nothing(
    tmp_path: Path, after: int, error: BaseException, kind: type[LlmsearchError]
) -> None:
    """The 26th call is one of the verdict."""
    left_alone = judged(tmp_path, Judge(0, None), "alone")
    judge = Judge(after, error)
    with pytest.raises(kind, match="again"):
        judged(tmp_path, judge, "away")
    stopped = load_result(f"sqlite:///{tmp_path}/away.db")
    assert not any(t.state is TrialState.FAIL for t in stopped.trials)
    assert stopped.verdict is None
    judge.error = None
    assert signature(judged(tmp_path, judge, "away")) == signature(left_alone)


def test_a_postprocess_whose_service_is_away_is_asked_again(tmp_path: Path) -> None:
    asked: list[None] = []

    def flaky(text: str) -> str:
        asked.append(None)
        if len(asked) % 97 == 0:
            raise ConnectionResetError("gone for a moment")
        return text

    result = run(tmp_path, n_trials=4, postprocess=flaky)
    assert not any(t.state is TrialState.FAIL for t in result.trials)


def test_a_time_limit_of_a_rows_own_code_is_that_rows_fault(tmp_path: Path) -> None:
    def running(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        if any(p.endswith("7") for p in predictions):
            raise TimeoutError("the program of this row ran for more than 5 s")
        return number_metric(predictions, references)

    metric = Metric.of(running, bounds=(0, 1))
    rows = dataset(2)
    with pytest.raises(MetricError, match="on row 1"):
        metric.score_rows(["0.5", "0.7"], [None, None], rows)


@pytest.mark.parametrize("error", [GeneratorExit(), asyncio.CancelledError(), Stop(), SystemExit(3)])
@pytest.mark.parametrize("place", ["prompt", "reference", "metric", "postprocess"])
def test_functions_that_raise_no_exception_are_named_before_a_study(
    tmp_path: Path, place: str, error: BaseException
) -> None:
    def raising(*_: Any) -> Any:
        raise error

    with pytest.raises(InputError, match=type(error).__name__):
        run(tmp_path, n_trials=2, **{place: raising})


@pytest.mark.parametrize("error", [GeneratorExit(), asyncio.CancelledError(), Stop("enough")])
def test_a_callback_may_raise_anything(tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on(self, event: Any) -> None:
            raise error

    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, n_trials=3, callbacks=[Broken()])
    assert result.verdict is not None
    assert [type(error).__name__ in message for message in caplog.messages if "callback" in message] == [True]


def test_a_callback_that_ends_the_program_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Leaving:
        def on(self, event: Any) -> None:
            raise SystemExit(4)

    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        run(tmp_path, n_trials=3, callbacks=[Leaving()])
    assert any("Leaving ended the program: SystemExit: 4" in message for message in caplog.messages)
    assert signature(run(tmp_path, n_trials=3)) == signature(run(tmp_path, name="alone", n_trials=3))


def test_a_metric_that_changes_what_it_gets_changes_nothing(tmp_path: Path) -> None:
    rows = [{**row, "answers": [str(n), "b"], "nested": {"tags": ["x"]}} for n, row in enumerate(dataset(40))]

    def harmless(predictions: list[str], references: list[Any], rows: list[dict[str, Any]]) -> list[float]:
        assert all(len(reference) == 2 for reference in references)
        assert all(row["nested"] == {"tags": ["x"]} and "prompt" in row for row in rows)
        return number_metric(predictions, references)

    def mutating(predictions: list[str], references: list[Any], rows: list[dict[str, Any]]) -> list[float]:
        scores = harmless(predictions, references, rows)
        for reference, row in zip(references, rows, strict=True):
            reference.clear()
            row["nested"]["tags"].append("y")
            del row["prompt"]
        predictions.clear()
        references.clear()
        return scores

    def prompt(row: dict[str, Any]) -> str:
        row["nested"]["tags"].pop()
        return str(row.pop("prompt"))

    def reference(row: dict[str, Any]) -> Any:
        row["nested"].clear()
        return row["answers"]

    arguments: dict[str, Any] = {"n_trials": 4, "dataset": rows}
    alone = run(
        tmp_path, name="alone", metric=Metric.of(harmless, name="m", bounds=(0, 1)), reference="answers", **arguments
    )
    changed: dict[str, Any] = {"metric": Metric.of(mutating, name="m", bounds=(0, 1)), "prompt": prompt}
    found = run(tmp_path, name="changed", reference=reference, **changed, **arguments)
    assert signature(found) == signature(alone)
    resumed = run(tmp_path, name="changed", reference=reference, **changed, **(arguments | {"n_trials": 5}))
    assert len(resumed.trials) == 5


def test_scores_without_an_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scores were expected"):
        run(tmp_path, metric=lambda predictions, references: {0.25, 0.5}, n_trials=2)
