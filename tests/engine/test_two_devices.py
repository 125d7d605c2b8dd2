"""A model whose layers are on two devices is decoded row by row, with the tokens that it has on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from tests.engine.architectures import make
from tests.engine.two_devices import DEVICES, Placed, devices, spread

START = "one two three four five six seven eight nine ten eleven twelve "
PROMPTS = tuple(
    START + rest for rest in ("The quick brown fox", "Anna asks", "How", "How many apples are there in all")
)
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 9},
    {"max_new_tokens": 7, "do_sample": True, "temperature": 1.2, "top_k": 0},
    {"max_new_tokens": 7, "do_sample": True, "top_p": 0.8, "top_k": 30},
    {"max_new_tokens": 6, "num_beams": 3},
    {"max_new_tokens": 12, "repetition_penalty": 1.2},
)


@pytest.fixture(autouse=True)
def _devices() -> Iterator[None]:
    with devices():
        yield


def test_tensors_on_different_devices_do_not_meet() -> None:
    one, two = (torch.arange(3.0, device=device) for device in DEVICES)
    assert isinstance(one, Placed)
    assert (one + one.to(DEVICES[0])).cpu().tolist() == [0.0, 2.0, 4.0]
    assert one.to(DEVICES[1]).device == two.device
    one[1:].copy_(two[:2])
    assert one.cpu().tolist() == [0.0, 0.0, 1.0]
    for other in (two, two.cpu()):
        with pytest.raises(RuntimeError, match="same device"):
            one + other


@pytest.mark.parametrize(("name", "on_device"), [("llama", False), ("gemma2", True)])
def test_tokens_are_those_of_one_device(name: str, on_device: bool, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = Engine(make(name), tiny_tokenizer, batch_size=3, cache_budget=10**8)
    there = Engine(spread(make(name)), tiny_tokenizer, batch_size=3, cache_budget=31_000, top=8)
    there._runner.samples_on_device = on_device
    assert "row by row" in there.capabilities
    assert [part.device for part in there._runner.buffer(1)._parts] == list(DEVICES)
    for params in (*CONFIGURATIONS, *CONFIGURATIONS[:2]):
        assert there.generate(PROMPTS, params) == whole.generate(PROMPTS, params), params
    assert there.stats.plain_requests == 0
    assert there.stats.evictions > 0, "the budget is too small for all"
    assert not there._runner.use_static_steps(), "a graph is on one device"
