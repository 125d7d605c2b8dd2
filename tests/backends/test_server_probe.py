"""What a few short texts say about a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.backends.server.probe import effects, ignored_warning, repetition
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams

SAMPLED = {"max_new_tokens": 9, "do_sample": True, "top_k": 0}


class Server:
    """Answers by a function of the request, the number of its call, and how many it is asked with."""

    def __init__(self, answer: Callable[[Request, int, int], str | None]) -> None:
        self.answer = answer
        self.calls = 0

    def ask(self, requests: Sequence[Request]) -> list[Completion | None]:
        self.calls += 1
        texts = [self.answer(request, self.calls, len(requests)) for request in requests]
        return [None if text is None else Completion(text) for text in texts]


def ends(name: str, low: float, high: float) -> ParameterEnds:
    return ParameterEnds(name, GenerationParams.of(SAMPLED | {name: low}), GenerationParams.of(SAMPLED | {name: high}))


ROWS = [Request("t", row, f"row {row}", GenerationParams.of(SAMPLED)) for row in range(6)]


def test_a_parameter_has_an_effect_or_is_ignored_or_refused_or_cannot_be_told() -> None:
    tried = [
        ends("temperature", 0.1, 1.5),
        ends("top_p", 0.2, 1.0),
        ends("min_p", 0.0, 0.5),
        ends("typical_p", 0.2, 1.0),
    ]

    def answer(request: Request, call: int, _: int) -> str | None:
        if "min_p" in request.params:
            return None
        if "typical_p" in request.params:
            return f"{call}"
        return f"{request.prompt} {request.params.get('temperature')}"

    found = effects(Server(answer), ROWS, tried)
    assert found == {
        "temperature": "has an effect",
        "top_p": "ignored",
        "min_p": "refused",
        "typical_p": "cannot tell",
    }
    assert ignored_warning(found, "vllm") == (
        "vllm answers with the same texts at both ends of top_p: it seems to ignore it, so that searching tunes nothing"
    )
    assert ignored_warning({"top_p": "refused"}, "vllm") is None


def test_rows_are_counted_that_repeat_themselves_alone_and_beside_others() -> None:
    params = GenerationParams.of(SAMPLED)
    steady = Server(lambda request, _, __: request.prompt)
    assert repetition(steady, ROWS, params) == repetition(steady, ROWS, params)
    assert (repetition(steady, ROWS, params).alone, repetition(steady, ROWS, params).beside_others) == (4, 4)
    crowd = repetition(Server(lambda request, _, beside: f"{request.prompt} {beside > 1}"), ROWS, params)
    assert (crowd.alone, crowd.beside_others) == (4, 0)
    noise = repetition(Server(lambda request, call, _: f"{request.prompt} {call}"), ROWS, params)
    assert (noise.alone, noise.beside_others) == (0, 0)
    assert str(crowd) == "the same seed gives the same text for 4 of 4 rows alone, and for 0 of 4 beside others"
