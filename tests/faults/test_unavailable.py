"""An engine that is away for a while costs time and nothing else: no row and no trial is stored as failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from llmsearch_optuna import transient_errors
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import EngineUnavailableError, StudyError
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import SAMPLING, run, signature
from tests.synthetic import TextEngine, number_metric


class Away(TextEngine):
    """Raises from the n-th call on, for so many calls."""

    name = "TextEngine"
    description = {"engine": "TextEngine"}  # noqa: RUF012

    def __init__(self, after: int, calls: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.asked, self.after, self.away = 0, after, calls
        self.error = error or ConnectionRefusedError("[Errno 111] Connection refused")

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self.asked += 1
        if self.asked > self.after and self.away > 0:
            self.away -= 1
            raise self.error
        return super().generate(prompts, params)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0, 0.0))


def test_a_short_outage_is_waited_for(tmp_path: Path) -> None:
    left_alone = run(tmp_path, Away(0, 0), name="alone", n_trials=4)
    assert signature(run(tmp_path, Away(5, 2), name="away", n_trials=4)) == signature(left_alone)


@pytest.mark.parametrize("after", [0, 7, 20, 40, 62, 66])
def test_a_long_outage_ends_the_study_and_the_same_call_goes_on(tmp_path: Path, after: int) -> None:
    """Later calls are those of the verdict, so that an outage there is met as well."""
    left_alone = run(tmp_path, engine := Away(0, 0), name="alone", n_trials=8)
    assert left_alone.verdict is not None
    after = min(after, engine.asked - 1)
    away = Away(after, 10**6)
    with pytest.raises(EngineUnavailableError, match="Connection refused.*the same command again"):
        run(tmp_path, away, name="away", n_trials=8)
    assert away.asked == after + 3, "it is asked three times, and by no other trial"
    stopped = load_result(f"sqlite:///{tmp_path}/away.db")
    assert not any(t.state is TrialState.FAIL for t in stopped.trials)
    away.away = 0
    assert signature(run(tmp_path, away, name="away", n_trials=8)) == signature(left_alone)
    assert len(set(away.calls)) == len(away.calls), "what was decoded is not decoded again"


def test_the_last_call_of_the_verdict_may_fail_too(tmp_path: Path) -> None:
    left_alone = run(tmp_path, engine := Away(0, 0), name="alone", n_trials=4)
    away = Away(engine.asked - 1, 10**6)
    with pytest.raises(EngineUnavailableError):
        run(tmp_path, away, name="away", n_trials=4)
    assert load_result(f"sqlite:///{tmp_path}/away.db").verdict is None
    away.away = 0
    assert signature(run(tmp_path, away, name="away", n_trials=4)) == signature(left_alone)


def test_one_bad_prompt_fails_alone_and_is_named(tmp_path: Path) -> None:
    class Bad(TextEngine):
        def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
            if prompt == "row 5" and params.get("do_sample"):
                raise SystemExit("cannot read this prompt")
            return super().complete(prompt, params)

    result = run(tmp_path, Bad(), n_trials=4, baseline={"do_sample": False})
    failed = [t for t in result.trials if t.state is TrialState.FAIL]
    assert failed
    for trial in failed:
        reason = "row 5: the engine raised SystemExit: cannot read this prompt"
        assert trial.user_attrs["fail_reason"] == reason
        assert {r.row for r in result.opened.records.rows("search", trial.number) if r.error is not None} == {5}


@pytest.mark.parametrize(
    ("answer", "said"),
    [(None, "returned None"), (7, "returned 7"), ({"text": "x"}, "returned {'text': 'x'}")],
)
def test_an_engine_that_returns_no_text_for_a_row_fails_that_row(tmp_path: Path, answer: Any, said: str) -> None:
    class Strange(TextEngine):
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> Any:
            found = super().generate(prompts, params)
            return [
                answer if prompt == "row 3" and params.get("do_sample") else c
                for prompt, c in zip(prompts, found, strict=True)
            ]

    result = run(tmp_path, Strange(), n_trials=3, baseline={"do_sample": False})
    reasons = [t.user_attrs["fail_reason"] for t in result.trials if t.state is TrialState.FAIL]
    assert reasons
    assert all(reason.startswith("row 3: ") and said in reason for reason in reasons)


def test_trials_that_fail_for_the_same_reason_end_the_study(tmp_path: Path) -> None:
    class Broken(TextEngine):
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
            if not params.get("do_sample"):
                return super().generate(prompts, params)
            raise RuntimeError("no licence")

    with pytest.raises(
        StudyError, match=r"(?s)trials \d+, \d+, \d+, \d+.*same reason.*row \d+: .*no licence.*goes on with new"
    ):
        run(tmp_path, Broken(), n_trials=30, space=SAMPLING)
    assert len(load_result(f"sqlite:///{tmp_path}/s.db").trials) < 20


def test_a_metric_that_ends_the_program_is_told(tmp_path: Path) -> None:
    def leaving(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        if any(p.endswith("7") for p in predictions):
            raise SystemExit(3)
        return number_metric(predictions, references)

    result = run(tmp_path, metric=leaving, n_trials=3)
    failed = [t for t in result.trials if t.state is TrialState.FAIL]
    assert failed
    assert all("raised SystemExit: 3 on row" in t.user_attrs["fail_reason"] for t in failed)
