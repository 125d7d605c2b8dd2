"""Every callback is told of every event; a user's own cannot end the study; what a search's own callbacks store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.callbacks import StudyFileCallback
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.progress import StudyEnded, StudyStarted, TrialEnded
from llmsearch_optuna.search_result import SearchResult, load_result
from tests.optimize.studies import Recorder, run, signature
from tests.tiny import SENTENCES


class Raising:
    """Raises at every event of one kind."""

    def __init__(self, kind: type, error: BaseException) -> None:
        self.events: list[progress.Event] = []
        self._kind = kind
        self._error = error

    def on(self, event: progress.Event) -> None:
        self.events.append(event)
        if isinstance(event, self._kind):
            raise self._error


def test_callbacks_are_told_of_the_same_events_in_the_same_order_as_the_observer(tmp_path: Path) -> None:
    observer, first, second = Recorder(), Recorder(), Recorder()
    run(tmp_path, observer=observer, callbacks=[first, second])
    assert first.events == second.events == observer.events
    told = {type(event) for event in first.events}
    assert told == set(progress.Event.__args__)  # type: ignore[attr-defined]
    ends = [(type(event), event.number) for event in first.events if hasattr(event, "state")]
    for number in range(10):
        assert ends.index((progress.TrialEnding, number)) < ends.index((progress.TrialEnded, number))


def test_a_callback_that_raises_is_warned_of_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = run(tmp_path, name="plain")
    raising, after = Raising(progress.RowsScored, ValueError("no such run")), Recorder()
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, callbacks=[raising, after])
    assert signature(result) == signature(plain)
    assert raising.events == after.events
    warned = [record.getMessage() for record in caplog.records if "no such run" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("the callback Raising raised ValueError: no such run on RowsScored; the study goes on")


def test_a_callback_can_stop_the_study_and_the_same_call_goes_on(tmp_path: Path) -> None:
    plain = run(tmp_path, name="plain")
    for kind in (progress.TrialEnding, progress.TrialEnded, progress.RowsScored, progress.StudyStarted):
        with pytest.raises(StudyInterrupted):
            run(tmp_path, callbacks=[Raising(kind, KeyboardInterrupt())])
    assert signature(run(tmp_path)) == signature(plain)


def test_what_a_callback_returns_is_ignored(tmp_path: Path) -> None:
    class Answering(Recorder):
        def on(self, event: progress.Event) -> Any:
            super().on(event)
            return event

    answering, plain = Answering(), Recorder()
    run(tmp_path, n_trials=2, callbacks=[answering, plain])
    assert answering.events == plain.events
    assert sum(isinstance(event, progress.StudyStarted) for event in plain.events) == 1


@pytest.mark.parametrize("wrong", [[print], Recorder(), [Recorder], [Recorder(), None], {"on": 1}])
def test_what_is_no_list_of_callbacks_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"callbacks.*with a method on\(event\)"):
        run(tmp_path, callbacks=wrong)


STARTED = StudyStarted(study_name="study", n_trials=2, finished_trials=2, rows=28, storage="")
TRIAL_ENDED = TrialEnded(number=1, state="complete", value=0.5)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(run(tmp_path, n_trials=2).opened.path)


def kept(storage: str) -> str | None:
    return load_result(storage).study.user_attrs.get("study_file")


def test_a_study_without_one_gets_it_when_it_starts(storage: str) -> None:
    StudyFileCallback(storage, "study", "first").on(STARTED)
    assert kept(storage) == "first"


@pytest.mark.parametrize("accepted", [TRIAL_ENDED, StudyEnded()])
def test_a_study_that_has_another_gets_it_once_it_is_known_to_go_on(
    storage: str, accepted: TrialEnded | StudyEnded
) -> None:
    StudyFileCallback(storage, "study", "first").on(STARTED)
    stored = StudyFileCallback(storage, "study", "second")
    stored.on(STARTED)
    assert kept(storage) == "first"
    stored.on(accepted)
    assert kept(storage) == "second"


SPACE = {"max_new_tokens": 6, "do_sample": True, "temperature": FloatDistribution(0.5, 1.5)}


class SmallMemory:
    """A device on which so many rows do not fit into one pass of the model."""

    def __init__(self, model: LlamaForCausalLM, most: int) -> None:
        self.failed = self.passed = 0
        self._most = most
        self._handle = model.model.norm.register_forward_hook(self._hook)

    def _hook(self, module: Any, arguments: Any, output: torch.Tensor) -> None:
        if output.shape[0] > self._most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.passed += 1

    def __enter__(self) -> SmallMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def run_tiny(folder: Path, engine: Engine, n_trials: int, name: str = "s") -> SearchResult:
    rows = [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(4) for sentence in SENTENCES]
    return search(
        engine,
        rows,
        SPACE,
        holdout=0.3,
        reference="answer",
        metric="f1",
        n_trials=n_trials,
        storage=f"sqlite:///{folder}/{name}.db",
        study_name="study",
        progress=False,
    )


def test_the_next_process_starts_from_what_fitted_and_the_tokens_are_the_same(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    plenty = run_tiny(tmp_path, Engine(tiny_llama, tiny_tokenizer, batch_size=16), 3, name="plenty")
    with SmallMemory(tiny_llama, most=5) as memory:
        first = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
        run_tiny(tmp_path, first, 2)
        assert memory.failed
        assert first.batch_sizes
        assert max(first.batch_sizes.values()) < 16
    second = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    started: list[dict[tuple[int, int], int]] = []
    second.start_from = started.append  # type: ignore[method-assign, assignment]
    small = run_tiny(tmp_path, second, 3)
    assert started == [first.batch_sizes]
    for number in range(3):
        assert [r.text for r in small.records(number)] == [r.text for r in plenty.records(number)]


def test_an_engine_that_starts_from_them_does_not_run_out_again(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = (Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=0) for _ in range(2))
    prompts = [f"{sentence} {n}" for n in range(3) for sentence in SENTENCES]
    with SmallMemory(tiny_llama, most=5) as memory:
        expected = first.generate(prompts, {"max_new_tokens": 6})
        assert memory.failed
        memory.failed = 0
        second.start_from(first.batch_sizes)
        assert second.generate(prompts, {"max_new_tokens": 6}) == expected
        assert memory.failed == 0
