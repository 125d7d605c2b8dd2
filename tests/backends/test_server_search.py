"""A study on a server: the same as without faults, and none of its rows asked twice."""

from __future__ import annotations

import functools
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from llmsearch_optuna import Engine, forecast, score, search
from llmsearch_optuna.backends.server import backoff
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from llmsearch_optuna.search_result import SearchResult
from tests.backends.stub_server import FAULTS, StubServer
from tests.synthetic import dataset, number_metric

SPACE = {"max_new_tokens": 16, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.05)


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().running() as server:
        yield server


def study(folder: Path, model: Any, **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {
        "n_trials": 4,
        "storage": f"sqlite:///{folder}/s.db",
        "study_name": "s",
        "skip_probe": True,
    }
    arguments |= changed
    return search(model, dataset(24), SPACE, metric=number_metric, progress=False, **{"holdout": 0.3} | arguments)


def told(result: SearchResult) -> list[Any]:
    """What a study has found: trials, their scores, and every text that counts."""
    trials = [(t.number, t.state, t.value, t.params, t.user_attrs.get("rows")) for t in result.trials]
    texts = [
        result.completions(trial.number)[["row", "completion", "score"]].values.tolist() for trial in result.trials
    ]
    return [trials, result.summary, texts]


def test_an_address_is_a_model(tmp_path: Path, stub: StubServer) -> None:
    result = study(tmp_path, stub.url, concurrency=4, n_trials=6)
    assert abs(result.best_params["temperature"] - 0.7) < abs(1.0 - 0.7)
    assert result.settings["model"] == "stub"
    assert {body["messages"][0]["role"] for body in stub.bodies()} == {"user"}
    assert set(stub.answered.values()) == {1}
    sampled = [body for body in stub.bodies() if body["temperature"] > 0]
    assert len({body["seed"] for body in sampled}) > 17  # one a row; the finalists and the holdout have replicates
    tokens = sum(trial.user_attrs["tokens"] for trial in result.trials)
    assert tokens > 40
    assert result.trials[0].user_attrs["engine"]["tokens"] == result.trials[0].user_attrs["tokens"]
    assert stub.url.split("/")[2].encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("*.db"))


@functools.cache
def undisturbed() -> list[Any]:
    """The study as it comes out without faults."""
    with tempfile.TemporaryDirectory() as folder, StubServer().running() as stub:
        return told(study(Path(folder), stub.url, concurrency=4))


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.one_of(st.none(), st.sampled_from(FAULTS)), max_size=40))
def test_faults_do_not_change_a_study(tmp_path_factory: pytest.TempPathFactory, faults: list[Any]) -> None:
    with StubServer(schedule=lambda number: faults[number] if number < len(faults) else None).running() as faulty:
        assert told(study(tmp_path_factory.mktemp("faulty"), faulty.url, concurrency=4)) == undisturbed()
    assert max(faulty.answered.values()) == 1


def test_a_server_that_goes_away_ends_the_study_and_the_same_call_goes_on(tmp_path: Path) -> None:
    first = StubServer(schedule=lambda number: "503" if number >= 30 else None)
    with first.running(), pytest.raises(EngineUnavailableError, match="same command again when it is back"):
        study(tmp_path, first.url, concurrency=4, retry_for=0.1)
    with sqlite3.connect(tmp_path / "s.db") as database:
        (errors,) = database.execute("select count(*) from llmsearch_rows where error is not null").fetchone()
        (kept,) = database.execute("select count(*) from llmsearch_rows").fetchone()
    assert errors == 0
    assert kept == sum(first.answered.values()) == 30
    with StubServer().running() as second:
        assert told(study(tmp_path, second.url, concurrency=4)) == undisturbed()
    assert not set(+first.answered) & set(second.asked)


def test_what_the_server_does_not_take_is_refused_before_the_first_row(tmp_path: Path, stub: StubServer) -> None:
    space = SPACE | {"typical_p": FloatDistribution(0.1, 0.9), "top_k": 50}
    with pytest.raises(InputError, match=r"openai does not take top_k \(vllm,.*; openai does not take typical_p"):
        search(stub.url, dataset(20), space, holdout=0.3, metric=number_metric, storage=f"sqlite:///{tmp_path}/s.db")
    assert not stub.asked


def test_objectives_and_budgets_count_the_servers_tokens(tmp_path: Path, stub: StubServer) -> None:
    result = study(tmp_path, stub.url, objectives=("score", "tokens"), n_trials=4)
    assert all(trial.values[1] > 1 for trial in result.trials if trial.values)
    spent = study(tmp_path, stub.url, study_name="budget", max_tokens=200, n_trials=30)
    assert len(spent.trials) < 15


def test_messages_and_template_variables_reach_the_server(stub: StubServer) -> None:
    found = score(
        stub.url,
        dataset(2),
        {"max_new_tokens": 4},
        metric=number_metric,
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say {prompt}"}],
        chat_template={"enable_thinking": False},
    )
    assert found.prompts[0] == "system: Be brief.\n\nuser: Say row 0"
    for body in stub.bodies():
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_text_goes_to_the_plain_interface(stub: StubServer) -> None:
    score(stub.url, dataset(2), {"max_new_tokens": 4}, metric=number_metric, chat_template=False)
    assert sorted(body["prompt"] for body in stub.bodies()) == ["row 0", "row 1"]


def test_options_of_a_server_need_one_and_those_of_a_model_do_not(stub: StubServer) -> None:
    with pytest.raises(InputError, match=r"concurrency=4 has no effect here: model= is no server's address"):
        score(lambda prompts, params: prompts, dataset(2), {"max_new_tokens": 4}, metric=number_metric, concurrency=4)
    with pytest.raises(InputError, match=r"batch_size=4 has no effect here: model= is a server"):
        score(stub.url, dataset(2), {"max_new_tokens": 4}, metric=number_metric, batch_size=4)


def test_an_engine_of_a_server_is_made_once_for_several_calls(stub: StubServer) -> None:
    engine = Engine.from_server(stub.url, concurrency=2, price={"input": 1.0, "output": 1.0})
    for temperature in (0.5, 0.7):
        params = {"max_new_tokens": 4, "temperature": temperature}
        score(engine, dataset(3), params, metric=number_metric)
    assert engine.stats["requests"] == 6
    assert engine.stats["cost"] > 0


def test_a_parameter_that_the_server_ignores_is_warned_of_once(
    tmp_path: Path, stub: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    space = SPACE | {"top_p": FloatDistribution(0.1, 1.0)}  # which this server takes, and does nothing with
    arguments: dict[str, Any] = {"metric": number_metric, "n_trials": 2, "storage": f"sqlite:///{tmp_path}/s.db"}
    search(stub.url, dataset(20), space, progress=False, **{"holdout": 0.3} | arguments)
    assert "openai answers with the same texts at both ends of top_p: it seems to ignore it" in caplog.text
    assert "temperature: it seems" not in caplog.text
    assert "the same seed" not in caplog.text
    caplog.clear()
    search(stub.url, dataset(20), space, progress=False, **{"holdout": 0.3} | arguments)
    assert "seems to ignore" not in caplog.text


def test_draws_that_depend_on_their_neighbours_are_told(
    tmp_path: Path, stub: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    def beside_others(answer: dict[str, Any], body: Any) -> dict[str, Any]:
        if stub._at_once > 1 and body["temperature"] > 0:
            answer["choices"][0]["message"]["content"] += "0"
        return answer

    stub.seconds, stub.change = 0.02, beside_others
    search(
        stub.url,
        dataset(20),
        SPACE,
        holdout=0.3,
        metric=number_metric,
        n_trials=1,
        progress=False,
        storage=f"{tmp_path}/s.db",
    )
    # the last of them to be answered may be alone by then
    assert re.search("for 4 of 4 rows alone, and for [0-3] of 4 beside others: draws depend on", caplog.text)


PRICE = {"input": 1000.0, "output": 10_000.0}


def test_a_budget_of_money_ends_the_search_at_the_same_trial_after_an_interruption(
    tmp_path: Path, stub: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    given: dict[str, Any] = {"price": PRICE, "max_cost": 10.0, "n_trials": 30, "trials_in_flight": 2}
    undivided = study(whole, stub.url, **given)
    assert 2 < len(undivided.trials) < 30
    spent = [trial.user_attrs["cost"] for trial in undivided.trials]
    asked = [undivided.completions(trial.number) for trial in undivided.trials]
    assert spent == pytest.approx([(7 * len(rows) * 1000 + rows["tokens"].sum() * 10_000) / 1e6 for rows in asked])
    assert sum(spent) <= 10.0 < sum(spent) * (len(spent) + 1) / len(spent) * 1.5
    assert "max_cost=10.0 leaves no room for another trial" in caplog.text
    stopping = StubServer(schedule=lambda number: "503" if number >= 50 else None)
    with stopping.running(), pytest.raises(EngineUnavailableError):
        study(parts, stopping.url, retry_for=0.1, **given)
    assert told(study(parts, stub.url, **given)) == told(undivided)
    page = undivided.save_report(tmp_path / "r.html").read_text()
    assert "cost of the tokens" in page


def test_what_a_study_will_cost_is_said_before_it_begins(tmp_path: Path, stub: StubServer) -> None:
    arguments: dict[str, Any] = {
        "metric": number_metric,
        "price": PRICE,
        "n_trials": 3,
        "pruner": "none",
        "holdout": 0.3,
    }
    foretold = forecast(stub.url, dataset(24), SPACE, skip_probe=True, **arguments)
    assert foretold.cost is not None
    assert "cost" in str(foretold)
    asked = sum(stub.answered.values())
    found = study(tmp_path, stub.url, price=PRICE, n_trials=3, pruner="none")
    assert foretold.cost.low <= sum(trial.user_attrs["cost"] for trial in found.trials) <= foretold.cost.high
    assert 0 < asked < sum(stub.answered.values())
    assert forecast(stub.url, dataset(24), SPACE, metric=number_metric, skip_probe=True).cost is None


def test_the_requests_of_a_pruned_trial_are_broken_off(tmp_path: Path) -> None:
    space = SPACE | {"temperature": FloatDistribution(0.1, 20.0)}
    with StubServer(seconds=0.01).running() as stub:
        result = search(
            stub.url, dataset(80), space, metric=number_metric, n_trials=6, concurrency=2, trials_in_flight=1,
            storage=f"sqlite:///{tmp_path}/s.db", skip_probe=True, progress=False,
        )  # fmt: skip
        pruned = [trial for trial in result.trials if trial.state is TrialState.PRUNED]
        assert pruned
        for trial in pruned:
            temperature = pytest.approx(trial.params["temperature"], rel=1e-4)
            sent = sum(body["temperature"] == temperature for body in stub.bodies())
            assert 0 < len(result.completions(trial.number)) <= sent < result.settings["rows"]["search"]


def test_reports_say_which_server_answered(tmp_path: Path, stub: StubServer) -> None:
    stub.owner, stub.pages = "vllm", {"/version": {"version": "0.32.0"}}
    result = study(tmp_path, stub.url, n_trials=1)
    assert (result.settings["model"], result.settings["server"]) == ("stub", "vllm 0.32.0")
    assert "stub, served by vllm 0.32.0" in result.save_report(tmp_path / "r.html").read_text()


def test_a_budget_of_money_needs_a_price(tmp_path: Path, stub: StubServer) -> None:
    with pytest.raises(InputError, match="max_cost=1.0 needs to know what tokens cost"):
        study(tmp_path, stub.url, max_cost=1.0)
    assert not stub.asked


def test_a_server_gets_the_messages_and_the_variables_that_a_trial_chooses(tmp_path: Path, stub: StubServer) -> None:
    result = study(
        tmp_path, stub.url, n_trials=8, prompt={"plain": "Do {prompt}", "kind": "Please do {prompt}"},
        system=[None, "Be brief."], chat_template_kwargs={"enable_thinking": [True, False]},
    )  # fmt: skip
    asked = {
        (
            len(body["messages"]),
            body["messages"][-1]["content"].split("row")[0],
            body["chat_template_kwargs"]["enable_thinking"],
        )
        for body in stub.bodies()
    }
    chosen = {
        (
            1 if params["system"] == "1. none" else 2,
            {"plain": "Do ", "kind": "Please do "}[params["prompt"]],
            params["chat_template_kwargs.enable_thinking"],
        )
        for params in (t.user_attrs["params"] for t in result.trials)
    }
    assert asked == chosen
    assert len(chosen) > 2
    assert not any("prompt" in body or "system" in body for body in stub.bodies())
