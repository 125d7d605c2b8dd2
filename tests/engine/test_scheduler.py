"""Which requests run together: what is shared, admitted, cancelled, and how many rows go into one pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.batch_size import BatchSizes
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.out_of_memory import NoRoomError
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.scheduler import (
    CAUTIOUS_ROWS,
    MOST_ROWS,
    SHARED_PREFIX_TOKENS,
    DecodeBatch,
    GenerateBatch,
    PrefillBatch,
    PrefixBatch,
    Scheduler,
    automatic_sizes,
)
from llmsearch_optuna.engine.sequence import SequenceFactory
from llmsearch_optuna.engine.sequence_sampler import Sampled
from llmsearch_optuna.engine.stats import Counters
from tests.engine.architectures import make
from tests.engine.decoding import PROMPTS, FailingForward, drain, tokens_of
from tests.engine.own_cache import with_own_cache
from tests.engine.test_memory import MB, FakeCuda
from tests.engine_work import rows_per_step, since
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
    assert since(before, engine.stats).forward_tokens == 0


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


def test_each_way_to_ask_has_a_prefix_of_its_own(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = "Summarize the dialogue in one sentence: they will meet at the station. " * 3
    second = "Anna asks Ben whether the train to Oslo leaves at seven or at eight. " * 3
    params = GenerationParams.of({"max_new_tokens": 4})
    ways = [[prefix + prompt for prompt in PROMPTS] for prefix in (first, second, first)]
    apart = [*dict.fromkeys(prompt for way in ways for prompt in way), "nothing in common"]
    engine, plain = Engine(tiny_llama, tiny_tokenizer, batch_size=8), Engine(tiny_llama, tiny_tokenizer, batch_size=1)
    for way in ways:
        engine.expect([Request("t", row, prompt, params) for row, prompt in enumerate(way)])
    assert engine.generate(apart, params) == [plain.generate([prompt], params)[0] for prompt in apart]
    whole = sum(len(tiny_tokenizer(prompt)["input_ids"]) for prompt in apart)
    saved = sum((len(PROMPTS) - 1) * (len(tiny_tokenizer(prefix)["input_ids"]) - 2) for prefix in (first, second))
    assert engine.stats.prefill_tokens <= whole - saved


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
    with FailingForward(tiny_llama, {2, 3}, torch.OutOfMemoryError, "CUDA out of memory"):  # the first step, twice
        assert engine.generate(prompts, params) == wanted
        assert engine.capacity == 4
        assert set(engine.batch_sizes.values()) == {4}
        for _ in range(4):
            assert engine.generate(prompts, params) == wanted
    assert engine.stats.out_of_memory == 2
    before = engine.stats
    assert engine.generate(others, params) == quiet.generate(others, params)
    assert rows_per_step(since(before, engine.stats)) == 8
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
        rows.append(automatic_sizes(engine._runner, 2 * row).rows)
    assert rows == [3, 20, 1, MOST_ROWS["cuda"]]


def test_auto_asks_how_long_rows_are(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, fake = Engine(tiny_llama, tiny_tokenizer), FakeCuda(monkeypatch)
    engine._runner.device = torch.device("cuda", 0)
    shape = engine._runner.capabilities.shape
    assert shape is not None

    def taken(tokens: int) -> int:
        return shape.bytes_per_token * tokens + 16 * engine._runner.vocab_size

    fake.free_by_nvml = 2 * 126 * taken(1024)
    sizes = automatic_sizes(engine._runner, 0)
    assert sizes.rows == 126, "before anything is known"
    for tokens, bucket in ((364, 512), (1000, 1024), (1500, 2048)):
        assert sizes.of(tokens).rows == min(256, 126 * taken(1024) // taken(bucket))
    assert sizes.rows == 126 * taken(1024) // taken(2048), "what the engine can make use of now"


def test_no_more_prompts_begin_than_rows_of_their_length_fit(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk = Desk(tiny_llama, tiny_tokenizer, BatchSizes(8, lambda tokens: 400 // tokens))
    for row in range(8):
        desk.add("a", row, *range(3 + row, 20 if row < 4 else 80))
    batch = desk.scheduler.schedule()
    assert isinstance(batch, PrefillBatch)
    assert len(batch.nodes) == 4, "a fifth row is longer, and of such rows 3 fit"


class Desk:
    """A scheduler over a real model, whose passes the test runs by hand."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: int | BatchSizes = 4) -> None:
        self.runner = ModelRunner(model)
        self.cache = PrefixCache(10**6)
        self.counters = Counters()
        make_sequence = SequenceFactory(tokenizer, {}, self.runner.vocab_size).make
        sizes = BatchSizes(rows) if isinstance(rows, int) else rows
        self.scheduler = Scheduler(self.runner, self.cache, sizes, make_sequence, self.counters)

    def add(self, tag: str, row: int, *prompt: int, **values: Any) -> None:
        params = GenerationParams.of({"max_new_tokens": 2, "eos_token_id": None, **values})
        self.scheduler.add(Request(tag, row, "", params), prompt)

    def prefill(self, batch: Any) -> None:
        """Give the prompts of a batch their scores."""
        assert isinstance(batch, PrefillBatch)
        for node, result in zip(
            batch.nodes, self.runner.prefill([n.tree.prompt_ids for n in batch.nodes]), strict=True
        ):
            (node.scores,) = self.runner.scores(result.state[None])

    def take(self, token: int) -> None:
        """Let every sequence that is ready take a token."""
        self.scheduler.update([Sampled(sequence, token) for sequence in self.scheduler.ready()])


def test_prompts_come_before_tokens_and_the_longest_first(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk = Desk(tiny_llama, tiny_tokenizer, rows=3)
    for row in range(5):
        desk.add("a", row, *range(3, 5 + row))
    batch = desk.scheduler.schedule()
    assert isinstance(batch, PrefillBatch)
    assert [len(node.tree.prompt_ids) for node in batch.nodes] == [4, 3, 2], "three rows fit, the oldest requests"
    desk.prefill(batch)
    assert desk.scheduler.schedule() is None, "their scores are there: they are sampled first"
    assert len(desk.scheduler.ready()) == 3
    desk.take(9)
    batch = desk.scheduler.schedule()
    assert isinstance(batch, DecodeBatch)
    assert [node.path()[0].token for node in batch.nodes] == [9, 9, 9]
    assert [len(node.tree.prompt_ids) for node in batch.nodes] == [2, 3, 4], "the oldest first"


def test_requests_for_generate_are_batched_by_tag_and_parameters(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk = Desk(tiny_llama, tiny_tokenizer, rows=3)
    for row in range(4):
        desk.add("a", row, 3, 4, guidance_scale=1.5)
    desk.add("b", 0, 3, 4, guidance_scale=1.5)
    found = []
    while isinstance(batch := desk.scheduler.schedule(), GenerateBatch):
        found.append([(request.tag, request.row) for request, _ in batch.requests])
    assert found == [[("a", 0), ("a", 1), ("a", 2)], [("a", 3)], [("b", 0)]]
    assert not desk.scheduler.has_work


def test_a_batch_that_is_queued_again_keeps_its_order(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk = Desk(tiny_llama, tiny_tokenizer)
    for row in range(3):
        desk.add("a", row, 3, 4, guidance_scale=1.5)
    first = desk.scheduler.schedule()
    assert isinstance(first, GenerateBatch)
    desk.scheduler.requeue(first)
    again = desk.scheduler.schedule()
    assert isinstance(again, GenerateBatch)
    assert again.requests == first.requests


def test_a_prefix_that_all_prompts_share_is_a_batch_of_its_own_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk, shared = Desk(tiny_llama, tiny_tokenizer), tuple(range(3, 3 + SHARED_PREFIX_TOKENS))
    desk.add("a", 0, *shared, 50)
    desk.add("a", 1, *shared, 51, 52)
    assert desk.scheduler.schedule() == PrefixBatch(shared)
    assert isinstance(desk.scheduler.schedule(), PrefillBatch)


def test_sequences_that_end_or_do_not_fit_leave(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    desk = Desk(tiny_llama, tiny_tokenizer)
    desk.add("a", 0, 3, 4, max_new_tokens=1)
    desk.add("a", 1, 5, 6)
    desk.prefill(desk.scheduler.schedule())
    one, two = desk.scheduler.ready()
    desk.scheduler.update([Sampled(one, 9), Sampled(two, NoRoomError("MemoryError: no more"))])
    complete, failed = desk.scheduler.take_finished()
    assert complete.completion is not None
    assert complete.completion.token_ids == (9,)
    assert "one row alone does not fit into memory (MemoryError: no more)" in str(failed.error)
    assert not desk.scheduler.has_work
    assert all(tree.references == 0 for tree in desk.cache.trees.values())
    assert desk.counters.total.tokens == 1
