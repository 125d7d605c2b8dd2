"""Engines that raise what no engine should, or answer too much, too often, or without an order."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from llmsearch_optuna import Engine, score, transient_errors
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, LlmsearchError, StudyError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import SAMPLING, run, signature
from tests.synthetic import ShuffledServer, TextEngine, dataset, number_metric


class Stop(BaseException):
    """As trio's and anyio's Cancelled."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS_SECONDS", (0.0, 0.0))


class Raising(TextEngine):
    """Raises from the 12th call on, until it is mended."""

    name = "TextEngine"
    description = {"engine": "TextEngine"}  # noqa: RUF012

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.asked = 0

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self.asked += 1
        if self.asked > 12 and self.error is not None:
            raise self.error
        return super().generate(prompts, params)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncio.CancelledError(), EngineUnavailableError),
        (GeneratorExit(), EngineUnavailableError),
        (Stop("the event loop ends"), EngineUnavailableError),
        (KeyboardInterrupt(), StudyInterrupted),
    ],
)
def test_what_is_no_exception_ends_the_study_in_words_and_burns_nothing(
    tmp_path: Path, error: BaseException, kind: type[LlmsearchError]
) -> None:
    left_alone = run(tmp_path, name="alone", n_trials=5)
    engine = Raising(error)
    with pytest.raises(kind, match="again"):
        run(tmp_path, engine, name="raising", n_trials=5)
    stopped = load_result(f"sqlite:///{tmp_path}/raising.db")
    assert not any(t.state is TrialState.FAIL for t in stopped.trials)
    engine.error = None
    assert signature(run(tmp_path, engine, name="raising", n_trials=5)) == signature(left_alone)


class Server(ShuffledServer):
    """Adds to what is returned, or takes from it."""

    name = "TextEngine"
    description = {"engine": "TextEngine"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(TextEngine(), 7)
        self.answered: list[Finished] = []

    def poll(self) -> Any:
        found = super().poll()
        answered, self.answered = self.answered, self.answered + found
        return self.changed(found, answered)

    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        return found


class Twice(Server):
    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        wrong = [Finished(f.request, Completion("0.123")) for f in [*found, *answered[-50:]]]
        return [*found, *wrong]


class Unknown(Server):
    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        request = found[0].request if found else answered[-1].request
        strangers = [
            Request(request.tag, 4711, "row 4711", request.params),
            Request(("search", 99), request.row, request.prompt, request.params),
            Request("nobody's", request.row, request.prompt, request.params),
            Request(request.tag, request.row, request.prompt, request.params, replicate=77),
        ]
        return [*(Finished(stranger, Completion("0.5")) for stranger in strangers), *found]


@pytest.mark.parametrize("server", [Server, Twice, Unknown])
def test_rows_out_of_order_twice_or_of_nobody_change_nothing(
    tmp_path: Path, server: type[Server], caplog: pytest.LogCaptureFixture
) -> None:
    left_alone = run(tmp_path, name="alone", n_trials=6)
    with caplog.at_level(logging.WARNING):
        found = run(tmp_path, server(), name="strange", n_trials=6)
    assert signature(found) == signature(left_alone)
    assert len([r for r in caplog.messages if "never asked for" in r]) == (0 if server is Server else 1)


class Endless(Server):
    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        return itertools.chain(found, itertools.repeat(found[0]))


class NoList(Server):
    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        return None


class Strangers(Server):
    def changed(self, found: list[Finished], answered: list[Finished]) -> Any:
        return [*found, Finished(None, Completion("x"))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("server", "said"), [(Endless, "more than"), (NoList, "TypeError"), (Strangers, "finished requests were expected")]
)
def test_a_server_that_answers_without_end_or_no_requests_is_refused(
    tmp_path: Path, server: type[Server], said: str
) -> None:
    with pytest.raises(DecodingError, match=said):
        run(tmp_path, server(), n_trials=4)


@pytest.mark.parametrize("member", ["submit", "poll", "cancel", "capacity", "refusal", "tag_stats"])
@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError()])
def test_every_member_of_an_engine_may_raise(tmp_path: Path, member: str, error: BaseException) -> None:
    def raising(*_: Any) -> Any:
        raise error

    made = {member: property(raising) if member == "capacity" else raising}
    with pytest.raises((DecodingError, EngineUnavailableError)):
        run(tmp_path, type("Member", (Server,), made)(), n_trials=3)


@pytest.mark.parametrize(
    ("member", "value"),
    [("capacity", "many"), ("capacity", 0), ("capacity", 1.5), ("default_params", [1]), ("cache_budget", -1)],
)
def test_members_of_another_kind_are_refused(tmp_path: Path, member: str, value: Any) -> None:
    with pytest.raises(LlmsearchError, match=f"engine's {member}"):
        run(tmp_path, type("Member", (Server,), {member: value})(), n_trials=3, batch_size=None)


class Rude:
    """A completion whose parts raise, or have no end."""

    token_ids = itertools.repeat(3)

    def __init__(self, *, has_text: bool) -> None:
        self.has_text = has_text

    @property
    def text(self) -> str:
        if not self.has_text:
            raise GeneratorExit
        return "0.5"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (lambda prompts: {"a", "b"}, "must return a list"),
        (lambda prompts: dict.fromkeys(prompts), "must return a list"),
        (lambda prompts: itertools.repeat("0.5"), "more completions than"),
        (lambda prompts: ["0.5"] * (len(prompts) - 1), "completions for"),
        (lambda prompts: [Rude(has_text=False)] * len(prompts), "raised GeneratorExit"),
    ],
)
def test_answers_that_are_no_list_of_completions_are_refused(answers: Any, said: str) -> None:
    class Strange:
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> Any:
            return answers(prompts)

    with pytest.raises(DecodingError, match=said):
        score(Strange(), dataset(3), {"max_new_tokens": 3}, metric=number_metric)


def test_token_ids_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsearch_optuna.backends.answers.MOST_TOKENS", 1000)

    class Strange:
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> Any:
            return [Rude(has_text=True) for _ in prompts]

    with pytest.raises(DecodingError, match="more than 1,000 token_ids"):
        score(Strange(), dataset(3), {"max_new_tokens": 3}, metric=number_metric)


@pytest.mark.parametrize(
    "answers", [lambda prompts: itertools.repeat("0.5"), lambda prompts: set(prompts), lambda prompts: 10**5000]
)
def test_a_functions_answers_without_end_order_or_texts_are_refused(answers: Any) -> None:
    with pytest.raises(DecodingError):
        score(
            Engine.from_function(lambda prompts, params: answers(prompts)),
            dataset(3),
            {"max_new_tokens": 3},
            metric=number_metric,
        )


def test_what_no_database_takes_in_an_error_is_stored_as_escapes(tmp_path: Path) -> None:
    class Broken(TextEngine):
        def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
            if not params.get("do_sample"):
                return super().generate(prompts, params)
            raise RuntimeError("half \ud800, nothing \x00, and much " + "x" * 10**6)

    with pytest.raises(StudyError, match=r"half \\ud800, nothing \\x00") as told:
        run(tmp_path, Broken(), n_trials=30, space=SAMPLING)
    assert len(str(told.value)) < 10_000
    found = load_result(f"sqlite:///{tmp_path}/s.db")
    errors = [r.error for r in found.opened.records.rows("search", 2) if r.error is not None]
    assert errors
    assert all(len(error) < 5000 for error in errors)


class Unhurried:
    """Forgets rows: nothing comes back."""

    def submit(self, requests: Iterable[Request]) -> None: ...

    def poll(self) -> list[Finished]:
        return []

    def cancel(self, tag: Hashable) -> None: ...


def test_an_engine_that_forgets_rows_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(DecodingError, match="have not come back"):
        run(tmp_path, Unhurried(), n_trials=3)
