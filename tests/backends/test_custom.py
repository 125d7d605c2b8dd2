"""A user's own engine gets the members that it lacks, and keeps those that it has."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import pytest

from llmsearch_optuna.backends.custom import CustomBackend, is_request_handler, is_text_generator
from llmsearch_optuna.backends.function import FunctionBackend
from llmsearch_optuna.backends.protocol import EngineBackend, ModelDescription
from llmsearch_optuna.engine.request import Finished, Request
from tests.synthetic import ShuffledServer, TextEngine


class Minimal(EngineBackend):
    """Defines what is required, and nothing else."""

    def submit(self, requests: Iterable[Request]) -> None: ...

    def poll(self) -> list[Finished]:
        return []

    def cancel(self, tag: Hashable) -> None: ...


class Rich(ShuffledServer):
    """Has every optional member."""

    name = "rich"
    tokenizer = "a tokenizer"
    default_params = {"top_k": 7}  # noqa: RUF012
    description = {"weights": "abc"}  # noqa: RUF012
    capacity = 5
    stats = {"tokens": 3}  # noqa: RUF012
    cache_budget = 9
    device_name = "a device"
    batch_sizes = {(64, 1): 8}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(TextEngine(), 0)
        self.expected: list[Request] = []
        self.started: list[object] = []

    def tag_stats(self, tag: Hashable) -> dict[str, Hashable]:
        return {"tag": tag}

    def expect(self, requests: Iterable[Request]) -> None:
        self.expected += requests

    def start_from(self, batch_sizes: object) -> None:
        self.started.append(batch_sizes)


def members(backend: EngineBackend) -> tuple[object, ...]:
    return (
        backend.capacity,
        backend.stats,
        backend.tag_stats("x"),
        backend.cache_budget,
        backend.device_name,
        backend.batch_sizes,
    )


def test_what_is_required_cannot_be_left_out() -> None:
    with pytest.raises(TypeError, match="abstract"):
        EngineBackend()  # type: ignore[abstract]


def test_an_object_without_optional_members_is_like_a_minimal_backend() -> None:
    assert members(CustomBackend(ShuffledServer(TextEngine(), 0))) == members(Minimal()) == (64, {}, {}, 0, "", None)
    assert members(FunctionBackend(TextEngine(), batch_rows=3)) == (6, {}, {}, 0, "", None)
    assert Minimal().describe("theirs") == ModelDescription("Minimal", {"engine": "Minimal"}, "theirs")
    custom = CustomBackend(ShuffledServer(TextEngine(), 0))
    custom.expect([])
    assert custom.describe() == ModelDescription("ShuffledServer", {"engine": "ShuffledServer"})


def test_an_object_keeps_its_own_members() -> None:
    rich = Rich()
    backend = CustomBackend(rich)
    assert members(backend) == (5, {"tokens": 3}, {"tag": "x"}, 9, "a device", {(64, 1): 8})
    assert backend.describe() == ModelDescription("rich", {"weights": "abc"}, "a tokenizer", {"top_k": 7})
    assert backend.describe("theirs").tokenizer == "theirs"
    backend.start_from({(64, 1): 4})
    assert rich.started == [{(64, 1): 4}]


def test_a_backend_is_known_by_its_three_methods() -> None:
    assert is_request_handler(Minimal())
    assert is_request_handler(ShuffledServer(TextEngine(), 0))
    assert not is_request_handler(TextEngine())


def test_a_text_generator_takes_prompts_and_parameters() -> None:
    class Model:
        """Like a Hugging Face model."""

        config = None

        def generate(self, inputs: object, generation_config: object) -> None: ...

    class Other:
        def generate(self, prompt: str) -> None: ...

    assert is_text_generator(TextEngine())
    assert not is_text_generator(Model())
    assert not is_text_generator(Other())
    assert not is_text_generator("a path")
