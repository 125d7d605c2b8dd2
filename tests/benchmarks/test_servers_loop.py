"""The plain loop that a study on a server is compared with, on a stub."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from tests.backends.stub_server import StubServer
from tests.benchmarks.servers import InFlight
from tests.benchmarks.servers_loop import Progress, plain_study, tokens_until


def test_every_row_of_every_trial_is_asked_once_and_at_most_so_many_at_once() -> None:
    rows = [(f"Say {n}.", f"{n / 10:.6f}") for n in range(4)]
    in_flight = InFlight()
    with StubServer(seconds=0.01).running() as stub:
        found = plain_study(
            stub.url,
            rows,
            {"temperature": FloatDistribution(0.1, 1.2), "min_p": FloatDistribution(0.1, 0.2)},
            tokens=5,
            trials=3,
            at_once=2,
            watch=in_flight,
        )
        bodies = stub.bodies()
    assert found.requests == len(bodies) == 12
    assert stub.most_at_once == 2
    assert len({(body["temperature"], body["min_p"]) for body in bodies}) == 3
    assert {body["messages"][0]["content"] for body in bodies} == {prompt for prompt, _ in rows}
    assert {(body["max_tokens"], body["top_k"]) for body in bodies} == {(5, 0)}
    assert len(found.progress) == 3
    assert [entry.tokens for entry in found.progress] == sorted({entry.tokens for entry in found.progress})
    assert 0 < in_flight.share(2) <= 1


def test_tokens_are_counted_until_a_score_is_reached_first() -> None:
    progress = [Progress(10, 0.2), Progress(20, 0.2), Progress(30, 0.5), Progress(40, 0.6)]
    assert tokens_until(progress, 0.2) == 10
    assert tokens_until(progress, 0.3) == 30
    assert tokens_until(progress, 0.7) is None
