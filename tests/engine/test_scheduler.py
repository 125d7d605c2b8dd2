"""Which requests run together: what is shared, admitted, cancelled, and how many rows go into one pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.scheduler import CAUTIOUS_ROWS, MOST_ROWS, estimated_rows
from tests.engine.architectures import make
from tests.engine.decoding import PROMPTS, FailingForward, drain, tokens_of
from tests.engine.own_cache import with_own_cache
from tests.engine.test_memory import MB, FakeCuda
from tests.oracle import hf_generate


def test_rows_on_the_same_node_are_computed_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    params = GenerationParams.of({"max_new_tokens": 12}, engine.default_params)
    drain(engine, [Request(tag, 0, PROMPTS[0], params) for tag in range(4)])
    stats = engine.stats
    assert stats.forward_tokens == stats.distinct_prefixes == stats.tokens // 4


def test_a_cancelled_tag_leaves_at_once_and_its_work_is_kept(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    params = GenerationParams.of({"max_new_tokens": 12}, engine.default_params)
    engine.submit([Request("weak", row, prompt, params) for row, prompt in enumerate(PROMPTS)])
    first = engine.poll()
    engine.cancel("weak")
    assert engine.poll() == []
    before = engine.stats
    drain(engine, [Request("next", finished.request.row, finished.request.prompt, params) for finished in first])
    assert engine.stats.since(before).forward_tokens == 0


def test_what_all_expected_prompts_share_is_computed_once_however_few_are_asked_for_at_a_time(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = "Summarize the dialogue in one sentence: they will meet at the station. " * 3
    prompts = [prefix + "Anna " + prompt for prompt in PROMPTS[:2]] + [prefix + prompt for prompt in PROMPTS]
    params = GenerationParams.of({"max_new_tokens": 4})
    requests = [Request("t", row, prompt, params) for row, prompt in enumerate(prompts)]
    engines = [Engine(tiny_llama, tiny_tokenizer, batch_size=1) for _ in range(2)]
    engines[0].expect(requests)
    texts = [[engine.generate([prompt], params)[0] for prompt in prompts] for engine in engines]
    assert texts[0] == texts[1]
    whole = sum(len(tiny_tokenizer(prompt)["input_ids"]) for prompt in prompts)
    shared = len(tiny_tokenizer(prefix)["input_ids"]) - 2  # the last token may grow into the next word
    assert engines[0].stats.prefill_tokens <= whole - (len(prompts) - 1) * shared
    assert engines[1].stats.prefill_tokens == whole


def test_a_shared_prefix_is_computed_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = "Summarize the dialogue in one sentence: they will meet at the station. " * 3
    prompts = [prefix + prompt for prompt in PROMPTS]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8)
    for prompt, tokens in zip(prompts, tokens_of(engine, prompts, {"max_new_tokens": 8}), strict=True):
        assert list(tokens) == hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, max_new_tokens=8)
    whole = sum(len(tiny_tokenizer(prompt).input_ids) for prompt in prompts)
    assert engine.stats.prefill_tokens < whole / 2


def test_a_batch_that_has_shrunk_grows_back(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    params = {"max_new_tokens": 12, "eos_token_id": None}
    prompts, others = ([f"{letter} {n}" for n in range(8)] for letter in "TS")
    quiet, engine = (Engine(tiny_llama, tiny_tokenizer, batch_size=8, cache_budget=0) for _ in range(2))
    wanted = quiet.generate(prompts, params)
    with FailingForward(tiny_llama, {2}, torch.OutOfMemoryError, "CUDA out of memory"):  # the first step
        assert engine.generate(prompts, params) == wanted
        assert engine.capacity == 4
        assert set(engine.batch_sizes.values()) == {4}
        for _ in range(4):
            assert engine.generate(prompts, params) == wanted
    assert engine.stats.out_of_memory == 1
    before = engine.stats
    assert engine.generate(others, params) == quiet.generate(others, params)
    assert engine.stats.since(before).rows_per_step == 8
    assert engine.capacity == 8
    assert set(engine.batch_sizes.values()) == {8}, "the next process starts with it"


def test_a_batch_that_has_shrunk_grows_back_on_the_plain_path(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, params = make("bart"), {"max_new_tokens": 3, "eos_token_id": None}
    prompts = [f"T {n}" for n in range(8)]
    engine = Engine(model, tiny_tokenizer, batch_size=8, cache_budget=0)
    wanted = engine.generate(prompts, params)
    generate, sizes = model.generate, []

    def failing_first(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", failing_first)
    for _ in range(32):
        assert engine.generate(prompts, params) == wanted
    assert engine.stats.out_of_memory == 1
    assert engine.batch_sizes == {(64, 1): 8}
    assert engine.generate(prompts, params) == wanted
    assert sizes == [8, *[4] * 64, 8]


def test_rows_that_generate_takes_one_by_one_come_one_by_one(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(make("bart"), tiny_tokenizer, batch_size=8)
    sampled = GenerationParams.of({"max_new_tokens": 3, "do_sample": True}, engine.default_params)
    greedy = GenerationParams.of({"max_new_tokens": 3}, engine.default_params)
    engine.submit([Request("sampled", row, prompt, sampled) for row, prompt in enumerate(PROMPTS[:3])])
    assert [len(engine.poll()) for _ in range(3)] == [1, 1, 1]
    engine.submit([Request("greedy", row, prompt, greedy) for row, prompt in enumerate(PROMPTS[:3])])
    assert len(engine.poll()) == 3


# ---- how many rows to begin with ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cache_budget", "bytes_per_token", "share"),
    [
        ("llama", "auto", 256, 4),  # half of what is free is the cache's, half of the rest is for the rows
        ("t5", "auto", 512, 4),
        ("llama", 0, 256, 2),
        ("bart", 0, 512, 2),  # these two decode through `model.generate`
        ("llama with its own cache", 0, 256, 2),
    ],
)
def test_auto_follows_the_free_memory(
    name: str,
    cache_budget: Any,
    bytes_per_token: int,
    share: int,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_own_cache(make("llama")) if "own" in name else make(name)  # type: ignore[arg-type]
    row = 1024 * bytes_per_token + 16 * 199
    rows = []
    for free in (0, 16 * MB, 32 * MB, 8 * MB, 4096 * MB):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free, total=2**40))
        rows.append(Engine(model, tiny_tokenizer, cache_budget=cache_budget).capacity)
    assert rows == [1, 16 * MB // share // row, 32 * MB // share // row, 8 * MB // share // row, MOST_ROWS["cpu"]]
    assert rows[0] < rows[3] < rows[1] < rows[2] < rows[4]


def test_a_budget_that_nothing_uses_takes_no_rows(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * MB, total=2**40))
    model = with_own_cache(make("llama"))  # type: ignore[arg-type]
    row = 1024 * 256 + 16 * 199
    assert Engine(model, tiny_tokenizer, cache_budget=10**12).capacity == 8 * MB // 2 // row


def test_auto_is_cautious_where_nothing_says_what_a_row_takes(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40, total=2**40))
    assert Engine(make("mamba"), tiny_tokenizer).capacity == CAUTIOUS_ROWS


def test_auto_follows_the_free_memory_of_a_cuda_device(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, fake = Engine(tiny_llama, tiny_tokenizer), FakeCuda(monkeypatch)
    engine._runner.device = torch.device("cuda", 0)
    row = engine._runner.capabilities.shape.bytes_per_token * 1024 + 16 * engine._runner.vocab_size  # type: ignore[union-attr]
    rows = []
    for free in (6 * row, 40 * row, 2 * row, 10_000 * row):
        fake.free_by_nvml, fake.reserved, fake.allocated = free, 5 * row, 3 * row
        rows.append(estimated_rows(engine._runner, 2 * row))
    assert rows == [3, 20, 1, MOST_ROWS["cuda"]]
