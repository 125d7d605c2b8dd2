"""Steps in static shapes give the tokens of the usual steps. What only a CUDA graph can show is marked `cuda`."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.cache.slots import SlotBuffer
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.model_runner_seq2seq import model_runner_for
from llmsearch_optuna.engine.static_step import EAGER_USES, StaticStep, rounded_columns, rounded_rows
from tests.engine.architectures import ROW_BY_ROW, make

PROMPTS = (
    "The quick brown fox jumps over",
    "Anna asks Ben whether the train",
    "How many apples",
    "T",
    "a b c d e f g h",
)
CONFIGURATIONS = (
    {"max_new_tokens": 20},
    {"max_new_tokens": 12, "do_sample": True, "temperature": 1.3, "top_k": 0},
    {"max_new_tokens": 8, "num_beams": 3},
)


@pytest.mark.parametrize("name", sorted(set(ROW_BY_ROW) - {"t5"}))
def test_every_architecture_gives_the_tokens_of_usual_steps(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(name)
    usual, static = (Engine(model, tiny_tokenizer, batch_size=3, cache_budget=10**8) for _ in range(2))
    assert static._runner.use_static_steps()
    for params in CONFIGURATIONS:
        assert static.generate(PROMPTS, params) == usual.generate(PROMPTS, params), params
    assert static.stats.steps == usual.stats.steps > 0


def test_an_encoder_decoder_model_keeps_its_usual_steps() -> None:
    assert not model_runner_for(make("t5"), top=8).use_static_steps()


def test_a_model_whose_steps_differ_keeps_its_usual_steps(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ModelRunner(tiny_llama)
    call = StaticStep.__call__
    monkeypatch.setattr(StaticStep, "__call__", lambda *given: 1.1 * call(*given))
    assert not runner.use_static_steps()


def test_rows_and_columns_that_are_not_in_use_change_nothing_and_are_never_nan(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama)
    assert runner.capabilities.shape is not None
    step = StaticStep(runner._states, runner.device)
    buffer = SlotBuffer(runner.capabilities.shape, 8)
    for row in runner.prefill([[5, 9, 30, 41], [7], [8, 60, 3]]):
        buffer.join([row.segment])
    for _ in range(70):  # over the end of a window and of the buffer
        buffer.reserve_step()
        expected = runner.step(buffer, [5, 6, 7])
        assert torch.allclose(step(buffer, [5, 6, 7]), expected, atol=1e-5)
        buffer.commit_step()
    assert all(layer.isfinite().all() for layer in buffer.layers(buffer.slots, buffer.capacity))
    assert {rows for rows, _ in buffer.derived[step]} == {4}


def test_shapes_are_forgotten_when_the_data_moves(tiny_llama: LlamaForCausalLM) -> None:
    runner = ModelRunner(tiny_llama)
    step = StaticStep(runner._states, runner.device)
    buffer = runner.buffer(1)
    (row,) = runner.prefill([[5, 9]])
    buffer.join([row.segment])
    step(buffer, [5])
    assert buffer.derived
    buffer.make_room(1, 500)
    assert not buffer.derived
    step(buffer, [5])
    buffer.clear()
    assert not buffer.derived


def test_sizes_are_rounded_up_to_few() -> None:
    for size in range(1, 3000):
        assert size <= rounded_rows(size) <= max(2 * size, size + 31)
        assert size <= rounded_columns(size) <= size + max(63, size // 8)
    assert len({rounded_columns(n) for n in range(1, 4097)}) < 40
    assert len({rounded_rows(n) for n in range(1, 257)}) < 15


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3-sliding", "mistral-sliding", "gpt2"])
def test_graphs_give_what_the_same_step_gives_without(name: str) -> None:
    runner = ModelRunner(make(name).to("cuda"))
    step = runner._static
    assert step is not None
    assert step.failure is None
    assert step.captured > 0
    buffer = runner.buffer(4)
    for row in runner.prefill([[5, 9, 30, 41], [7], [8, 60, 3]]):
        buffer.join([row.segment])
    plain = StaticStep(runner._states, runner.device)
    plain.failure = "on purpose"
    for _ in range(EAGER_USES + 20):
        buffer.reserve_step()
        expected = plain(buffer, [5, 6, 7])
        assert torch.equal(step(buffer, [5, 6, 7]), expected)
        buffer.commit_step()
