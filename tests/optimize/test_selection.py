"""The verdict where things go wrong: another worker takes it over, or held-out rows cannot be scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.optimize import selection
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.leases import Session
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = [{"max_new_tokens": 20}, {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}]
N_TRIALS = 6


class Busy(TextEngine):
    """Something happens while it decodes."""

    meanwhile: Callable[[], None] | None = None

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().generate(prompts, params)


class Fragile(TextEngine):
    """Decodes until it breaks."""

    is_broken = False

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        if self.is_broken:
            raise RuntimeError("it broke")
        return super().generate(prompts, params)


class Listener:
    """Does something at the n-th event of a kind."""

    def __init__(self, kind: type[progress.Event], which: int, then: Callable[[], None]) -> None:
        self._kind, self._left, self._then = kind, which, then

    def on(self, event: progress.Event) -> None:
        if isinstance(event, self._kind):
            self._left -= 1
            if self._left == 0:
                self._then()


def run(folder: Path, engine: TextEngine, *, name: str = "s", **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {"reference": "answer", "metric": number_metric, "progress": False} | changed
    storage = f"sqlite:///{folder}/{name}.db"
    return search(
        engine,
        dataset(40),
        SPACE,
        n_trials=N_TRIALS,
        storage=storage,
        study_name="study",
        **{"holdout": 0.3} | arguments,
    )


def held_out(result: SearchResult) -> list[int]:
    return sorted(row for row, item in result.items.items() if item.part == "holdout")


class Successor:
    """A worker that finds another one's lease ended, claims the verdict, and dies before it has decided."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take_over(self) -> None:
        opened = load_result(f"{self._folder}/s.db").opened
        with opened.database.begin() as connection:
            connection.execute(sa.update(schema.workers).values(lease_end=0.0))
        self._session = Session(opened.database, opened.key)
        self._session.__enter__()
        assert self._session.claim(selection.VERDICT_CLAIM) is not None

    def die(self) -> None:
        self._session.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("kind", "which"), [(progress.TrialEnded, N_TRIALS), (progress.VerdictStarted, 1)], ids=["finalists", "holdout"]
)
def test_a_worker_that_was_away_for_too_long_finds_the_verdict_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[progress.Event], which: int
) -> None:
    whole = run(tmp_path, Busy(), name="whole")
    engine, other, third = Busy(), Successor(tmp_path), Busy()
    stored: list[SearchResult] = []

    def wait(_: float) -> None:
        assert load_result(f"{tmp_path}/s.db").verdict is None, "nothing is written without the claim"
        other.die()
        stored.append(run(tmp_path, third))

    def suspend() -> None:
        engine.meanwhile = other.take_over

    monkeypatch.setattr(selection, "time", SimpleNamespace(sleep=wait))
    result = run(tmp_path, engine, observer=Listener(kind, which, suspend))
    (after,) = stored
    assert result.looks == after.looks == whole.looks
    assert result.verdict is not None
    ours, theirs = set(engine.calls), set(third.calls)
    assert len(engine.calls) == len(ours), "what the successor has decoded is not decoded again"
    assert 0 < len(ours & theirs) <= 8, "only what was under way when the claim was lost"


def test_rows_that_cannot_be_scored_are_counted_in_the_verdict(tmp_path: Path) -> None:
    broken = {str(row) for row in held_out(run(tmp_path, TextEngine(), name="whole"))[-3:]}

    def picky(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        if broken & set(references):
            raise ValueError("no such reference")
        return number_metric(predictions, references)

    picky.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
    result = run(tmp_path, TextEngine(), metric=picky)
    assert result.verdict is not None
    assert (result.verdict.rows, result.verdict.unscored) == (9, 3)
    assert "3 of 12 held-out rows could not be scored and do not count" in result.verdict.sentence


def test_a_holdout_of_which_no_row_can_be_scored_is_not_called_missing(tmp_path: Path) -> None:
    engine = Fragile()
    result = run(
        tmp_path,
        engine,
        observer=Listener(progress.VerdictStarted, 1, lambda: setattr(engine, "is_broken", True)),
    )
    assert len(held_out(result)) == 12
    assert result.verdict is not None
    assert result.verdict.answer == "no evidence"
    assert "none of the 12 held-out rows could be scored" in result.verdict.sentence
    assert "baseline stays recommended" in result.verdict.sentence
    assert result.recommended_params == result.baseline_params


def test_a_corpus_metric_that_fails_on_the_holdout_leaves_the_baseline(tmp_path: Path) -> None:
    held = {str(row) for row in held_out(run(tmp_path, TextEngine(), name="whole"))}

    def mean_of_known(predictions: Sequence[str], references: Sequence[Any]) -> float:
        if held & set(references):
            raise ValueError("no such reference")
        return sum(number_metric(predictions, references)) / len(predictions)

    result = run(tmp_path, TextEngine(), metric=mean_of_known)
    assert result.best_trial.number
    assert result.verdict is not None
    assert "none of the 12 held-out rows could be scored" in result.verdict.sentence


@pytest.mark.parametrize("finalists", [1, 3])
def test_so_many_of_the_best_trials_are_decoded_again(tmp_path: Path, finalists: int) -> None:
    result = run(tmp_path, TextEngine(), finalists=finalists)
    assert result.selection is not None
    always = {t.number for t in result.trials if t.user_attrs["role"] in ("baseline", "greedy")}
    best = [finalist.number for finalist in result.selection.finalists if finalist.number not in always]
    assert len(best) == finalists
    if finalists != 3:
        with pytest.raises(StudyError, match="finalists"):
            run(tmp_path, TextEngine())
