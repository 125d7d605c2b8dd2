"""A server as an engine, against one that answers from the request alone and fails when it is told to."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsearch_optuna.backends.server import backoff
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.reply import UNKNOWN_TOKEN_ID
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from tests.backends.stub_server import FAULTS, HARMLESS, StubServer, answer_to

SAMPLED = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.7}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.05)


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().running() as server:
        yield server


def requests(backend: ServerBackend, rows: int, tag: object = "t", **changed: Any) -> list[Request]:
    params = GenerationParams.of(SAMPLED | changed, backend.default_params)
    return [Request(tag, row, f"row {row}", params) for row in range(rows)]


def all_of(backend: ServerBackend, asked: list[Request]) -> dict[int, Finished]:
    backend.submit(asked)
    found: dict[int, Finished] = {}
    while len(found) < len(asked):
        done = backend.poll()
        assert done
        found |= {item.request.row: item for item in done}
    assert backend.poll() == []
    return found


def test_requests_come_back_with_the_servers_text_and_count(stub: StubServer) -> None:
    stub.seconds = 0.05
    backend = ServerBackend(stub.url)
    found = all_of(backend, requests(backend, 12))
    assert backend.describe().name == "stub"
    assert stub.most_at_once > 1
    for body in stub.bodies():
        completion = found[int(body["prompt"].split()[1])].completion
        assert completion is not None
        assert completion.text == answer_to(body)
        assert completion.token_ids == (UNKNOWN_TOKEN_ID,) * (int(float(completion.text) * 10) + 1)
    assert set(stub.answered.values()) == {1}
    total = sum(len(item.completion.token_ids) for item in found.values() if item.completion)
    assert backend.stats["tokens"] == backend.tag_stats("t")["tokens"] == total
    assert backend.stats["prefill_tokens"] == 12 * 7


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.one_of(st.none(), st.sampled_from(FAULTS)), max_size=30), concurrency=st.integers(1, 6))
def test_faults_change_nothing_and_no_row_is_asked_again_once_it_is_answered(
    faults: list[Any], concurrency: int
) -> None:
    with StubServer(schedule=lambda number: faults[number] if number < len(faults) else None).running() as stub:
        backend = ServerBackend(stub.url, concurrency=concurrency)
        found = all_of(backend, requests(backend, 10))
        backend.close()
    for body in stub.bodies():
        completion = found[int(body["prompt"].split()[1])].completion
        assert completion is not None
        assert completion.text == answer_to(body)
    assert len(stub.asked) == 10
    assert all(count <= 1 for count in stub.answered.values())
    failed = sum(fault not in (None, *HARMLESS) for fault in faults[: sum(stub.asked.values())])
    assert backend.stats.get("retries", 0) == failed
    assert stub.most_at_once <= concurrency


def test_a_server_that_stays_away_ends_with_a_message_and_returns_what_it_had_answered(stub: StubServer) -> None:
    stub.schedule = lambda number: "503" if number >= 5 else None
    backend = ServerBackend(stub.url, retry_for=0.2, concurrency=2)
    backend.submit(requests(backend, 8))
    found: list[Finished] = []
    with pytest.raises(EngineUnavailableError, match=r"503: fault 503.*retry_for=.*same command again when it is back"):
        while True:
            found += backend.poll()
    assert len(found) == 5
    assert all(item.completion is not None for item in found)
    stub.schedule = lambda _: None
    backend.cancel("t")
    assert len(all_of(backend, requests(backend, 3, tag="again"))) == 3


def test_what_the_server_refuses_fails_the_row_in_its_own_words(stub: StubServer) -> None:
    backend = ServerBackend(stub.url)
    stub.change = lambda answer, body: (
        {"error": {"message": "max_tokens is too large", "code": 400}} if body["prompt"] == "row 1" else answer
    )
    found = all_of(backend, requests(backend, 3))
    assert str(found[1].error) == "the server says: 400: max_tokens is too large"
    assert found[0].completion is not None
    assert sum(stub.asked.values()) == 3


@pytest.mark.parametrize(("code", "words"), [(401, "401: no key"), (404, "404: no key"), (403, "403: no key")])
def test_what_no_request_can_mend_ends_the_study_at_once(stub: StubServer, code: int, words: str) -> None:
    backend = ServerBackend(stub.url)
    stub.change = lambda answer, body: {"error": {"message": "no key", "code": code}}
    backend.submit(requests(backend, 1))
    with pytest.raises(EngineUnavailableError, match=f"{words}.*when this is mended"):
        backend.poll()


def test_another_model_in_the_middle_of_a_study_ends_it(stub: StubServer) -> None:
    backend = ServerBackend(stub.url)
    assert len(all_of(backend, requests(backend, 2))) == 2
    stub.model = "other"
    backend.submit(requests(backend, 1, tag="later"))
    with pytest.raises(EngineUnavailableError, match="answers as 'other' now, and answered as 'stub' before"):
        backend.poll()


def test_requests_that_are_cancelled_are_broken_off_and_never_come_back(stub: StubServer) -> None:
    stub.seconds = 0.5
    backend = ServerBackend(stub.url, concurrency=2)
    backend.submit(requests(backend, 20, tag="pruned"))
    backend.submit(requests(backend, 2, tag="kept", temperature=0.2))
    time.sleep(0.05)
    backend.cancel("pruned")
    begun = time.monotonic()
    found = [*backend.poll(), *backend.poll()]
    assert {item.request.tag for item in found} == {"kept"}
    assert time.monotonic() - begun < 4.0  # one after the other would take 5 seconds
    assert backend.poll() == []
    assert sum(stub.asked.values()) <= 8  # those in flight, and what a busy machine starts before it hears of it


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer().running() as stub:
        url = stub.url
    with pytest.raises(EngineUnavailableError, match="no connection"):
        ServerBackend(url)


def test_keys_come_from_the_environment_and_go_nowhere_else(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    backend = ServerBackend(stub.url, api_key_env="MY_KEY")
    all_of(backend, requests(backend, 1))
    assert stub.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-" not in json.dumps([backend.describe().fingerprint, backend.stats, repr(backend)])
    plain = ServerBackend(stub.url)
    all_of(plain, requests(plain, 1, tag="plain"))
    assert "sk-openai" not in json.dumps(stub.headers)
    assert "org-secret" not in json.dumps(stub.headers)
    with pytest.raises(InputError, match="NOT_SET holds the key"):
        ServerBackend(stub.url, api_key_env="NOT_SET")
    with pytest.raises(InputError, match="never in an address") as told:
        ServerBackend(stub.url.replace("http://", "http://me:sk-secret@"))
    assert "sk-secret" not in str(told.value)


def test_counts_that_are_missing_are_made_here(stub: StubServer, caplog: pytest.LogCaptureFixture) -> None:
    stub.change = lambda answer, body: answer | {"usage": None}
    backend = ServerBackend(stub.url)
    found = all_of(backend, requests(backend, 3))
    assert [len(item.completion.token_ids) for item in found.values() if item.completion] == [1, 1, 1]
    assert caplog.text.count("does not say how many tokens") == 1


def test_prices_become_costs(stub: StubServer) -> None:
    backend = ServerBackend(stub.url, price={"input": 1.0, "output": 10.0})
    all_of(backend, requests(backend, 4))
    stats = backend.stats
    assert stats["cost"] == pytest.approx((stats["prefill_tokens"] + 10 * stats["tokens"]) / 1e6)
    with pytest.raises(InputError, match=r"price=.*must give the price of a million tokens"):
        ServerBackend(stub.url, price={"in": 1.0})


def test_a_server_lists_its_model_or_it_is_named(stub: StubServer) -> None:
    stub.pages["/v1/models"] = {"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}]}
    with pytest.raises(InputError, match=r"lists 2 models; say which with served_model= \(a, b\)"):
        ServerBackend(stub.url)
    with pytest.raises(InputError, match="has no model 'c'; it lists a, b"):
        ServerBackend(stub.url, model="c")
    backend = ServerBackend(stub.url, model="b")
    assert backend.identity.model == "b"
    assert backend.identity.dialect.name == "vllm"


@pytest.mark.parametrize(
    ("owner", "pages", "dialect"),
    [
        ("vllm", {"/version": {"version": "0.32"}}, "vllm"),
        ("sglang", {}, "sglang"),
        ("llamacpp", {}, "llama.cpp"),
        ("library", {"/api/version": {"version": "0.9"}}, "ollama"),
        ("me", {"/api/version": {"version": "0.9"}}, "ollama"),
        ("me", {"/openapi.json": {"paths": {"/load_model": {}, "/v1/chat/completions": {}}}}, "transformers"),
        ("me", {}, "openai"),
    ],
)
def test_the_dialect_is_found_by_asking(stub: StubServer, owner: str, pages: dict[str, Any], dialect: str) -> None:
    stub.owner, stub.pages = owner, pages
    assert ServerBackend(stub.url).identity.dialect.name == dialect
    assert ServerBackend(stub.url, dialect="sglang").identity.dialect.name == "sglang"


def test_what_identifies_the_model_does_not_hold_the_address(stub: StubServer) -> None:
    stub.owner, stub.model = "vllm", "/data/models/llama-8b"
    with StubServer(owner="vllm", model="/mnt/llama-8b").running() as elsewhere:
        here, there = ServerBackend(stub.url), ServerBackend(elsewhere.url)
        assert here.describe().fingerprint == there.describe().fingerprint
        assert here.describe().name == "llama-8b"
        assert "127.0.0.1" not in json.dumps(here.describe().fingerprint)


def test_llama_cpp_says_its_slots_and_defaults(stub: StubServer) -> None:
    stub.owner = "llamacpp"
    params = {"temperature": 0.800000011920929, "top_k": 40, "repeat_penalty": 1.0, "repeat_last_n": 64}
    stub.pages["/props"] = {"total_slots": 3, "default_generation_settings": {"params": params, "n_ctx": 512}}
    backend = ServerBackend(stub.url)
    assert backend.capacity == 6
    assert backend.default_params["temperature"] == 0.8
    assert (backend.identity.slots, backend.identity.context) == (3, 512)
    baseline = GenerationParams.of({"max_new_tokens": 4}, backend.default_params)
    assert baseline["temperature"] == 0.8
    assert "repeat_last_n" not in baseline


def test_a_server_with_one_seed_for_all_is_asked_one_request_at_a_time(stub: StubServer) -> None:
    stub.seconds = 0.01
    backend = ServerBackend(stub.url, dialect="transformers")
    all_of(backend, requests(backend, 40))
    assert stub.most_at_once == 1
    assert ServerBackend(stub.url, dialect="transformers", concurrency=3).capacity == 6


def test_texts_can_be_asked_for_without_a_study(stub: StubServer) -> None:
    backend = ServerBackend(stub.url)
    completions = backend.generate(["one", "two"], SAMPLED)
    assert [c.text for c in completions] == [
        answer_to(body) for body in sorted(stub.bodies(), key=lambda b: str(b["prompt"]))
    ]


def test_an_interruption_ends_the_wait(stub: StubServer) -> None:
    stub.seconds = 3.0
    backend = ServerBackend(stub.url)
    backend.submit(requests(backend, 1))
    timer = threading.Timer(0.2, _interrupt_main)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        backend.poll()
    assert time.monotonic() - begun < 2.0
    backend.cancel("t")


def _interrupt_main() -> None:
    os.kill(os.getpid(), signal.SIGINT)
