"""The engine against `model.generate` on one unpadded prompt, and against itself in every other arrangement."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteriaList

from llmsearch_optuna.engine import engine as engine_module
from llmsearch_optuna.engine import out_of_memory as relief_module
from llmsearch_optuna.engine.cache.slots import SlotBuffer
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.memory import OUT_OF_MEMORY_MESSAGES
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.beam_search import BeamSearch
from llmsearch_optuna.engine.sampling.logits_processors import RowScores
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.stop import StopOnSequences
from llmsearch_optuna.engine.scheduler import CAUTIOUS_ROWS, MOST_ROWS
from llmsearch_optuna.engine.sequence import BeamSequence
from llmsearch_optuna.errors import DecodingError, InputError
from tests.engine.architectures import PLAIN, ROW_BY_ROW, make
from tests.engine.own_cache import with_own_cache
from tests.engine.test_memory import MB, FakeCuda
from tests.oracle import hf_generate

PROMPTS = (
    "The quick brown fox jumps over the lazy dog",
    "Anna asks Ben whether the train",
    "How many apples",
    "Thank you very much! You are welcome; see you tomorrow, or on 30 May",
    "#Person1#: Could you send me the report? #Person2#:",
    "T",
    "Anna asks Ben whether the cat sleeps",
)
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 7, "repetition_penalty": 1.3},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"max_new_tokens": 12, "do_sample": True, "temperature": 1.4, "top_k": 20},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 1.1, "top_k": 0, "generation_seed": 5},
    {"max_new_tokens": 10, "do_sample": True, "typical_p": 0.6, "top_k": 0},
    {"max_new_tokens": 8, "num_beams": 3},
    {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 0.3, "repetition_penalty": 1.2},
    {"max_new_tokens": 8, "num_beams": 2, "do_sample": True, "temperature": 0.9, "top_k": 0},
    {"max_new_tokens": 9, "do_sample": True, "mirostat_mode": 2, "mirostat_tau": 2.0},
)


def tokens_of(engine: Engine, prompts: Sequence[str], params: dict[str, Any]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.generate(prompts, params)]


def reference(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> list[list[tuple[int, ...]]]:
    """Every configuration on a fresh engine that keeps nothing and computes one row at a time."""
    results = []
    for params in CONFIGURATIONS:
        engine = Engine(model, tokenizer, batch_size=1, cache_budget=0, **options)
        results.append(tokens_of(engine, PROMPTS, params))
    return results


@pytest.fixture(scope="module")
def expected(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> list[list[tuple[int, ...]]]:
    return reference(tiny_llama, tiny_tokenizer)


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_greedy_and_beams_are_those_of_generate(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(name)
    engine = Engine(model, tiny_tokenizer, batch_size=16)
    assert "row by row" in engine.capabilities
    for params in ({"max_new_tokens": 12}, {"max_new_tokens": 8, "num_beams": 3}):
        for _ in range(2):  # the second time everything comes from the trees
            for prompt, tokens in zip(PROMPTS, tokens_of(engine, PROMPTS, params), strict=True):
                assert list(tokens) == hf_generate(model, tiny_tokenizer(prompt).input_ids, **params)
    before = engine.stats.forward_tokens
    tokens_of(engine, PROMPTS, {"max_new_tokens": 9})
    assert engine.stats.forward_tokens == before, "a smaller max_new_tokens replays completely"
    assert engine.stats.forward_tokens == engine.stats.distinct_prefixes


@pytest.mark.parametrize("name", PLAIN)
def test_other_architectures_take_the_plain_path(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(name)
    engine = Engine(model, tiny_tokenizer, batch_size=4)
    assert "model.generate" in engine.capabilities
    for prompt, tokens in zip(PROMPTS, tokens_of(engine, PROMPTS, {"max_new_tokens": 8}), strict=True):
        assert list(tokens) == hf_generate(model, tiny_tokenizer(prompt).input_ids, max_new_tokens=8)


@pytest.mark.parametrize(
    ("batch_size", "cache_budget", "top"),
    [
        (1, "auto", 1024),
        (3, 0, 24),
        (3, 20_000, 1024),
        (16, 0, 1024),
        (16, 20_000, 24),
        (16, "auto", 24),
        (64, "auto", 24),
    ],
)
def test_every_arrangement_gives_the_same_tokens(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    batch_size: int,
    cache_budget: Any,
    top: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=top)
    for _ in range(2):
        for params, tokens in zip(CONFIGURATIONS, expected, strict=True):
            assert tokens_of(engine, PROMPTS, params) == tokens


@settings(max_examples=15)
@given(
    choice=st.lists(st.integers(0, len(CONFIGURATIONS) - 1), min_size=1, max_size=5),
    rows=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=7, unique=True),
    batch_size=st.integers(1, 20),
    cache_budget=st.sampled_from([0, 5_000, 60_000, 10_000_000]),
    shuffle=st.integers(0, 2**16),
)
def test_trials_in_flight_do_not_change_each_other(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    choice: list[int],
    rows: list[int],
    batch_size: int,
    cache_budget: int,
    shuffle: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget)
    requests = [
        Request((place, index), row, PROMPTS[row], GenerationParams.of(CONFIGURATIONS[index], engine.default_params))
        for place, index in enumerate(choice)
        for row in rows
    ]
    random.Random(shuffle).shuffle(requests)
    for request, completion in drain(engine, requests):
        assert completion.token_ids == expected[request.tag[1]][request.row]  # type: ignore[index]


def drain(engine: Engine, requests: Sequence[Request]) -> list[tuple[Request, Completion]]:
    engine.submit(requests)
    results = []
    while finished := engine.poll():
        for item in finished:
            assert item.completion is not None, item.error
            results.append((item.request, item.completion))
    assert len(results) == len(requests)
    return results


@pytest.mark.parametrize(
    "values",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 3.0},
        {"repetition_penalty": 3.0, "num_beams": 2},
        {"repetition_penalty": 3.0, "encoder_repetition_penalty": 1.5},
        {"eos_token_id": [1, 5, 89, 150], "min_new_tokens": 2, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_the_pad_token_is_never_penalised(
    values: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As many tokenizers have it, the pad token ends texts here, too: a penalty on padding would show."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    asked = {"max_new_tokens": 12, **values}
    found = tokens_of(Engine(tiny_llama, tokenizer, batch_size=8), PROMPTS, asked)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert list(tokens) == hf_generate(tiny_llama, tokenizer(prompt).input_ids, **asked)
    ends = values.get("eos_token_id", [1])
    assert "eos_token_id" not in values or any(tokens[-1] in ends and len(tokens) < 12 for tokens in found)


@pytest.mark.parametrize("warping", [{"top_k": 3}, {"top_k": 0, "temperature": 0.6, "min_p": 0.2}], ids=str)
def test_pairs_of_tokens_have_the_frequencies_of_the_softmax(
    warping: dict[str, Any], tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """4,000 replicates through tree and slots; what a pair's probability is, two plain forwards say."""
    count, prompt = 4000, PROMPTS[0]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    values = {"max_new_tokens": 2, "do_sample": True, "eos_token_id": None, **warping}
    params = GenerationParams.of(values, engine.default_params)
    requests = [Request("t", 0, prompt, params, replicate=n) for n in range(count)]
    drawn = Counter(completion.token_ids for _, completion in drain(engine, requests))

    def following(ids: list[int]) -> dict[int, float]:
        with torch.inference_mode():
            logits = tiny_llama(torch.tensor([ids])).logits[0, -1].double() / warping.get("temperature", 1.0)
        p = logits.softmax(-1).numpy()
        kept = p >= (np.sort(p)[-3] if warping["top_k"] else warping["min_p"] * p.max())
        return {int(token): p[token] / p[kept].sum() for token in np.flatnonzero(kept)}

    ids = tiny_tokenizer(prompt).input_ids
    pairs = {(a, b): p * q for a, p in following(ids).items() for b, q in following([*ids, a]).items()}
    assert set(drawn) <= set(pairs)
    often = [pair for pair, p in pairs.items() if p * count >= 5]
    assert len(often) >= 4
    found = [drawn[pair] for pair in often]
    wanted = [pairs[pair] * count for pair in often]
    if len(often) < len(pairs):
        found.append(count - sum(found))
        wanted.append(count - sum(wanted))
    assert stats.chisquare(found, wanted).pvalue > 1e-4


BEAMS: tuple[dict[str, Any], ...] = (
    {"num_beams": 2, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 4, "early_stopping": True, "repetition_penalty": 1.4},
    {"num_beams": 5, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"num_beams": 6, "early_stopping": "never", "length_penalty": 0.6},
)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("ends", [[1], list(range(1, 199, 5))], ids=["one", "many"])
def test_beams_beside_each_other_are_those_of_generate(
    name: str, ends: list[int], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """All at once in one small batch, so that beams of one row are computed in different passes."""
    model = make(name)
    engine = Engine(model, tiny_tokenizer, batch_size=5, cache_budget=200_000)
    asked = [{"max_new_tokens": 8, "eos_token_id": ends, **beams} for beams in BEAMS]
    requests = [
        Request(index, row, prompt, GenerationParams.of(values, engine.default_params))
        for row, prompt in enumerate(PROMPTS[:4])
        for index, values in enumerate(asked)
    ]
    for request, completion in drain(engine, requests):
        ids = tiny_tokenizer(request.prompt).input_ids
        assert list(completion.token_ids) == hf_generate(model, ids, **asked[request.tag])  # type: ignore[index]


@pytest.mark.parametrize("beams", range(1, 7))
def test_beams_stop_on_strings_as_in_generate(
    beams: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """`generate` gets the same stops as a criterion for each hypothesis."""
    values = {"max_new_tokens": 10, "num_beams": beams, "early_stopping": True}
    stops = {"stop": ["e", "th", "4"], "stop_token_sequences": [[n] for n in range(10, 190, 9)]}
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    reasons = set()
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, {**values, **stops}), strict=True):
        ids = torch.tensor([tiny_tokenizer(prompt).input_ids])
        criterion = StopOnSequences(
            prompt_length=ids.shape[1],
            sequences=stops["stop_token_sequences"],
            stop=stops["stop"],
            tokenizer=tiny_tokenizer,
        )
        wanted = tiny_llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=StoppingCriteriaList([criterion]),
            **values,
        )
        assert list(completion.token_ids) == wanted[0, ids.shape[1] :].tolist()
        reasons.add(completion.finish_reason)
    assert "stop" in reasons


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


def test_equal_prompts_draw_different_noise(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    params = {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0, "top_k": 0}
    first, second = engine.generate([PROMPTS[0], PROMPTS[0]], params)
    assert first.token_ids != second.token_ids
    assert engine.generate([PROMPTS[0]], params)[0] == first


def test_nothing_touches_the_global_generator(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    engine = Engine(tiny_llama, tiny_tokenizer)
    for params in CONFIGURATIONS:
        engine.generate(PROMPTS[:2], params)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_prompt_that_does_not_fit_ends_with_the_reason(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with pytest.raises(DecodingError, match="exceed the model's context of 512"):
        engine.generate([PROMPTS[0], "word " * 500], {"max_new_tokens": 12})
    assert len(engine.generate(PROMPTS, {"max_new_tokens": 3})) == len(PROMPTS), "the engine goes on"


def test_bad_arguments_are_named(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        Engine(tiny_llama, tiny_tokenizer, batch_size=0)
    with pytest.raises(InputError, match="cache_budget is -1"):
        Engine(tiny_llama, tiny_tokenizer, cache_budget=-1)


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


class FailingForward:
    """Throws an error in chosen forward passes of a model, after they have run and while their tensors are alive."""

    def __init__(self, model: LlamaForCausalLM, when: set[int], error: type[Exception], message: str) -> None:
        self.calls = 0
        self.held: list[weakref.ref[torch.Tensor]] = []
        self._when, self._error, self._message = when, error, message
        self._handle = model.model.norm.register_forward_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        self.calls += 1
        if self.calls in self._when:
            activations = torch.zeros(8)
            self.held.append(weakref.ref(activations))
            try:
                raise ValueError("the allocator below")
            except ValueError as cause:
                raise self._error(self._message) from cause

    def __enter__(self) -> FailingForward:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@settings(max_examples=12)
@given(
    when=st.sets(st.integers(1, 60), max_size=12),
    error=st.sampled_from(
        [
            (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
            (MemoryError, ""),
            *((RuntimeError, f"{part.upper()} in some allocator") for part in OUT_OF_MEMORY_MESSAGES),
        ]
    ),
    batch_size=st.sampled_from([2, 7, 16]),
    cache_budget=st.sampled_from([0, 60_000, 10_000_000]),
)
def test_running_out_of_memory_changes_no_token(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    when: set[int],
    error: tuple[type[Exception], str],
    batch_size: int,
    cache_budget: int,
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget)
    with FailingForward(tiny_llama, when, *error) as forward:
        for index in (0, 3, 7):
            results = {}
            params = GenerationParams.of(CONFIGURATIONS[index], engine.default_params)
            engine.submit([Request(index, row, prompt, params) for row, prompt in enumerate(PROMPTS)])
            while finished := engine.poll():
                results |= {item.request.row: item for item in finished}
            for row, item in results.items():
                if item.completion is not None:
                    assert item.completion.token_ids == expected[index][row]
                else:
                    assert "one row alone does not fit" in str(item.error)
    assert engine.stats.out_of_memory <= len(when & set(range(1, forward.calls + 1)))
    gc.collect()
    assert [reference() for reference in forward.held] == [None] * len(forward.held), "an error keeps tensors alive"
    if cache_budget == 10_000_000:
        assert engine.stats.forward_tokens == engine.stats.distinct_prefixes, "only what failed is repeated"


def shuffled_requests(engine: Engine, choice: Sequence[int], dice: random.Random) -> list[Request]:
    """All prompts under these configurations, each tagged with its configuration's number."""
    requests = [
        Request(index, row, prompt, GenerationParams.of(CONFIGURATIONS[index], engine.default_params))
        for index in choice
        for row, prompt in enumerate(PROMPTS)
    ]
    dice.shuffle(requests)
    return requests


@settings(max_examples=10)
@given(
    places=st.sets(st.sampled_from(["head", "embedding", "read", "make_room", "extend"]), min_size=1),
    rate=st.sampled_from([0.03, 0.2]),
    seed=st.integers(0, 2**16),
    batch_size=st.sampled_from([1, 4, 16]),
    cache_budget=st.sampled_from([0, 20_000, 60_000, 10_000_000]),
    choice=st.permutations(range(len(CONFIGURATIONS))).map(lambda order: order[:4]),
)
def test_running_out_of_memory_anywhere_changes_no_token(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    places: set[str],
    rate: float,
    seed: int,
    batch_size: int,
    cache_budget: int,
    choice: list[int],
) -> None:
    """In looking logits up, in moving rows, in handing them over, in computing them again: four trials in flight."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=24)
    dice = random.Random(seed)

    def fail(*_: Any) -> None:
        if dice.random() < rate:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            fail()
            return function(*arguments)

        return call

    hooks = [
        module.register_forward_hook(fail)
        for place, module in (("head", tiny_llama.lm_head), ("embedding", tiny_llama.model.embed_tokens))
        if place in places
    ]
    requests = shuffled_requests(engine, choice, dice)
    finished = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "llmsearch_optuna.engine.out_of_memory.give_back", lambda device: None
        )  # collecting takes minutes
        for place in places & {"read", "make_room"}:
            patch.setattr(SlotBuffer, place, failing(getattr(SlotBuffer, place)))
        if "extend" in places:
            patch.setattr(ModelRunner, "extend", failing(ModelRunner.extend))
        engine.submit(requests)
        while batch := engine.poll():
            finished += batch
    for hook in hooks:
        hook.remove()
    assert len(finished) == len(requests)
    for item in finished:
        if item.completion is None:
            assert "one row alone does not fit" in str(item.error)
        else:
            assert item.completion.token_ids == expected[item.request.tag][item.request.row]  # type: ignore[index]
    for index in choice:  # what was kept on the way is right, too
        assert tokens_of(engine, PROMPTS, CONFIGURATIONS[index]) == expected[index]


def test_logits_that_do_not_fit_end_the_row_that_needs_them(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    engine.generate(PROMPTS, {"max_new_tokens": 4})  # the tree has what greedy needs
    needs_all = GenerationParams.of({"max_new_tokens": 4, "repetition_penalty": 0.7}, engine.default_params)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = tiny_llama.lm_head.register_forward_hook(fail)
    try:
        engine.submit([Request("trial", row, prompt, needs_all) for row, prompt in enumerate(PROMPTS)])
        finished = []
        while batch := engine.poll():
            finished += batch
        replayed = engine.generate(PROMPTS, {"max_new_tokens": 4})
    finally:
        hook.remove()
    assert len(finished) == len(PROMPTS)
    assert all("one row alone does not fit" in str(item.error) for item in finished)
    assert engine.stats.cache_bytes > 0, "scores are not given up for it"
    assert [list(c.token_ids) for c in replayed] == [
        hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, max_new_tokens=4) for prompt in PROMPTS
    ]


def test_a_row_that_never_fits_fails_alone(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8)
    with FailingForward(tiny_llama, set(range(1, 1000)), torch.OutOfMemoryError, "out of memory"):
        params = GenerationParams.of({"max_new_tokens": 4}, engine.default_params)
        engine.submit([Request("trial", row, prompt, params) for row, prompt in enumerate(PROMPTS)])
        finished = []
        while batch := engine.poll():
            finished += batch
    assert {item.request.row for item in finished} == set(range(len(PROMPTS)))
    assert all("one row alone does not fit" in str(item.error) for item in finished)
    assert [c.token_ids for c in engine.generate(PROMPTS, {"max_new_tokens": 4})]


def test_errors_that_are_not_about_memory_are_not_swallowed(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    with (
        FailingForward(tiny_llama, {1}, RuntimeError, "shape mismatch"),
        pytest.raises(RuntimeError, match="shape mismatch"),
    ):
        engine.generate(PROMPTS, {"max_new_tokens": 4})


def numpy_has_no_memory() -> None:
    np.empty(2**60, dtype=np.uint8)


@pytest.fixture
def _collecting_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes a tenth of a second, and every shortage of memory asks for it."""
    monkeypatch.setattr(relief_module, "give_back", lambda device: None)


HOST_STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "pick": ((engine_module, "pick"),),
    "pick_from_logits": ((engine_module, "pick_from_logits"),),
    "beams": (
        (BeamSearch, "after"),
        (BeamSearch, "_score"),
        (BeamSearch, "_choose"),
        (BeamSearch, "_extended"),
        (BeamSequence, "_children"),
    ),
    "rules": ((RowScores, "positions"), (RowScores, "ban")),
}
"""What runs on the host while tokens are picked."""


@settings(max_examples=12)
@given(
    places=st.sets(st.sampled_from(sorted(HOST_STEPS)), min_size=1),
    rate=st.sampled_from([0.02, 0.2]),
    seed=st.integers(0, 2**16),
    batch_size=st.sampled_from([4, 16]),
    cache_budget=st.sampled_from([0, 60_000, 10_000_000]),
    choice=st.permutations(range(len(CONFIGURATIONS))).map(lambda order: order[:4]),
)
def test_running_out_of_memory_while_picking_changes_no_token(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    places: set[str],
    rate: float,
    seed: int,
    batch_size: int,
    cache_budget: int,
    choice: list[int],
) -> None:
    """It fails after its work, so whatever that left behind would show; four trials are in flight."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=24)
    dice = random.Random(seed)

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            if dice.random() < rate:
                numpy_has_no_memory()
            return result

        return call

    requests = shuffled_requests(engine, choice, dice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relief_module, "give_back", lambda device: None)
        for place in places:
            for owner, name in HOST_STEPS[place]:
                patch.setattr(owner, name, failing(getattr(owner, name)))
        finished = ended(engine, requests)
    assert len(finished) == len(requests)
    for item in finished:
        if item.completion is None:
            assert "one row alone does not fit into memory (MemoryError: Unable to allocate" in str(item.error)
        else:
            assert item.completion.token_ids == expected[item.request.tag][item.request.row]  # type: ignore[index]
    for index in choice:  # what was kept on the way is right, too
        assert tokens_of(engine, PROMPTS, CONFIGURATIONS[index]) == expected[index]


def ended(engine: Engine, requests: Sequence[Request]) -> list[Finished]:
    engine.submit(requests)
    finished = []
    while batch := engine.poll():
        finished += batch
    return finished


@pytest.mark.usefixtures("_collecting_is_quick")
@pytest.mark.parametrize("step", ["pick", "pick_from_logits"])
def test_rows_that_cannot_be_picked_together_are_picked_in_parts(
    step: str,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, sizes = getattr(engine_module, step), []

    def picking(scores: Any, rows: Sequence[Any]) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            numpy_has_no_memory()
        return whole(scores, rows)

    monkeypatch.setattr(engine_module, step, picking)
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=60_000, top=24)
    for index, params in enumerate(CONFIGURATIONS):
        assert tokens_of(engine, PROMPTS, params) == expected[index]
    assert max(sizes) > 2
    quiet = Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=60_000, top=24)
    monkeypatch.setattr(engine_module, step, whole)
    for params in CONFIGURATIONS:
        tokens_of(quiet, PROMPTS, params)
    assert engine.stats.tokens == quiet.stats.tokens, "no token is counted twice"
    assert engine.stats.lookups == quiet.stats.lookups


@pytest.mark.usefixtures("_collecting_is_quick")
def test_a_row_whose_tokens_can_never_be_picked_fails_alone(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two trials of three: one samples, one follows beams."""
    pick, after = engine_module.pick, BeamSearch.after

    def picking(candidates: Any, rows: Sequence[Any]) -> Any:
        if any(row.params.generation_seed == 77 and row.step == 3 for row in rows):
            numpy_has_no_memory()
        return pick(candidates, rows)

    def following(search: BeamSearch, scores: Any) -> Any:
        if len(search.running[0]) == 3:
            numpy_has_no_memory()
        return after(search, scores)

    monkeypatch.setattr(engine_module, "pick", picking)
    monkeypatch.setattr(BeamSearch, "after", following)
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16)
    asked = (CONFIGURATIONS[0], {**CONFIGURATIONS[4], "generation_seed": 77}, CONFIGURATIONS[7])
    finished = ended(
        engine,
        [
            Request(tag, row, prompt, GenerationParams.of(params, engine.default_params))
            for row, prompt in enumerate(PROMPTS)
            for tag, params in enumerate(asked)
        ],
    )
    assert len(finished) == 3 * len(PROMPTS)
    for item in finished:
        if item.request.tag == 0:
            assert item.completion is not None
            assert item.completion.token_ids == expected[0][item.request.row]
        else:
            assert "one row alone does not fit into memory (MemoryError: Unable to allocate" in str(item.error)
    monkeypatch.undo()
    assert tokens_of(engine, PROMPTS, CONFIGURATIONS[7]) == expected[7], "the engine goes on"


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


def test_the_last_resort_is_there_again_after_a_pass_of_the_plain_path(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving up the rows in flight makes room once; a row of a later pass has the same right to it."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=1, cache_budget=0)
    params, calls = {"max_new_tokens": 4, "encoder_repetition_penalty": 1.5}, []
    wanted = engine.generate(PROMPTS[:3], params)
    assert engine.stats.plain_requests == 3
    plain = engine_module.generate_plain

    def failing_every_other_time(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments)

    monkeypatch.setattr(engine_module, "generate_plain", failing_every_other_time)
    assert engine.generate(PROMPTS[:3], params) == wanted
    assert len(calls) == 6


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
        rows.append(engine._estimated_rows(budget=2 * row))
    assert rows == [3, 20, 1, MOST_ROWS["cuda"]]


def test_the_cache_stays_within_its_budget(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    budget = 60_000
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=8, cache_budget=budget)
    for seed in range(12):
        engine.generate(PROMPTS, {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0, "generation_seed": seed})
        assert engine.stats.cache_bytes <= budget
    assert engine.stats.evictions > 0


def test_what_cannot_be_decoded_ends_with_the_reason_and_the_engine_goes_on(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    nothing_is_left = {"max_new_tokens": 4, "suppress_tokens": list(range(199)), "num_beams": 2}
    with pytest.raises(DecodingError):
        engine.generate(PROMPTS[:2], nothing_is_left)
    assert len(engine.generate(PROMPTS[:2], {"max_new_tokens": 3})) == 2


def test_a_model_that_keeps_its_cache_to_itself_is_decoded_by_generate_and_says_so_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """As AutoAWQ's fused layers do."""
    prompts = ["Anna asks Ben", "How many apples does she have left?", "The quick brown fox"]
    engine = Engine(with_own_cache(tiny_llama), tiny_tokenizer)
    for params in ({"max_new_tokens": 10}, {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7}):
        completions = engine.generate(prompts, params)
        assert [len(c.token_ids) for c in completions]
    usual = Engine(tiny_llama, tiny_tokenizer).generate(prompts, {"max_new_tokens": 10})
    greedy = engine.generate(prompts, {"max_new_tokens": 10})
    assert [c.token_ids for c in greedy] == [c.token_ids for c in usual]
    assert engine.stats.plain_requests == 9
    assert len([r for r in caplog.records if "LlamaForCausalLM" in r.getMessage()]) == 1
    assert "model.generate" in caplog.text


def test_a_row_gets_the_room_of_stored_scores_before_it_fails(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """A device on which nothing can be computed beside more than these scores."""
    params = {"max_new_tokens": 6}
    alone = [hf_generate(tiny_llama, tiny_tokenizer(prompt).input_ids, **params) for prompt in PROMPTS]
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=1)
    engine.generate(PROMPTS[:1], params)
    room = 2 * engine._store.scores.nbytes

    def refuse(*_: Any) -> None:
        if engine._store.scores.nbytes > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_llama.model.norm.register_forward_hook(refuse)
    try:
        assert [list(c.token_ids) for c in engine.generate(PROMPTS, params)] == alone
        room = -1
        with pytest.raises(DecodingError, match="one row alone does not fit"):
            engine.generate(["Something else"], params)
    finally:
        handle.remove()
    assert "bytes of next-token scores" in caplog.text
    assert [list(c.token_ids) for c in engine.generate(PROMPTS, params)] == alone
