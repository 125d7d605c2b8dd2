"""The memory behind a device's. On a CPU there is none, so these tests let the host stand behind itself."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.cache.cache_shape import Segment
from llmsearch_optuna.engine.cache.offload import HostOffload
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.engine import Engine
from tests.engine.architectures import make
from tests.engine.cache.test_prefix_cache import grow, segment

CPU = torch.device("cpu")
PROMPTS = ("The quick brown fox jumps over", "Anna asks Ben whether the train", "How many apples", "T")
CONFIGURATIONS = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 10, "do_sample": True, "temperature": 1.4, "top_k": 0},
    {"max_new_tokens": 8, "num_beams": 3},
    {"max_new_tokens": 14, "repetition_penalty": 1.3},
)


def test_a_processor_has_no_other_memory_behind_its_own() -> None:
    assert HostOffload.behind(CPU).budget == 0


def test_what_is_evicted_waits_on_the_host_and_comes_back_the_same() -> None:
    store = PrefixCache(segment(4).nbytes, host=HostOffload(CPU, segment(4).nbytes))
    first, second = store.tree((5, 6)), store.tree((7, 8))
    path = grow(first.root, 1, 2)
    store.store_path(path, segment(2))
    kept = path[0].location
    assert kept is not None
    assert kept.segment is not None
    before = kept.segment
    store.store_path(grow(second.root, 1, 2, 3), segment(3))
    assert path[0].location is kept
    assert kept.segment.data_ptr() != before.data_ptr()
    found, end = store.path_segment(path, 0)
    assert found is not None
    assert torch.equal(found, segment(2))
    assert end == 2
    assert (store.nbytes, store.host_blocks.nbytes) == (segment(3).nbytes, segment(2).nbytes)
    assert store.evictions == 0


def test_the_host_gives_up_what_was_unused_for_longest() -> None:
    store = PrefixCache(segment(1).nbytes, host=HostOffload(CPU, 2 * segment(1).nbytes))
    root = store.tree((5,)).root
    nodes = [grow(root, token)[0] for token in range(4)]
    for node in nodes[:3]:
        store.store_path([node], segment(1))
    store.path_segment([nodes[0]], 0)  # used: the next one goes first
    store.store_path([nodes[3]], segment(1))
    assert [node.location is None for node in nodes] == [False, True, False, False]
    assert store.evictions == 1


def test_page_locked_memory_is_counted_in_the_powers_of_two_that_it_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HostOffload.store
    locked: list[int] = []

    def store_locked(memory: HostOffload, part: Segment) -> Segment:
        copy = store(memory, part)
        locked.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(HostOffload, "store", store_locked)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in locked)
    one, three = segment(1).nbytes, segment(3).nbytes
    cache = PrefixCache(10**6, host=HostOffload(CPU, 8 * one))
    root = cache.tree((5,)).root
    for token in range(3):
        cache.store_path(grow(root, token, 1, 2), segment(3))
        assert cache.nbytes == three
        assert cache.evict_blocks() == three
        assert cache.host_blocks.nbytes == min(token + 1, 2) * 4 * one, "two blocks of three tokens fill it"


def test_memory_that_runs_out_moves_everything_to_the_host() -> None:
    store = PrefixCache(10**6, host=HostOffload(CPU, 10**6))
    tree = store.tree((5, 6))
    store.store_prompt(tree, segment(2), segment(3))
    assert store.evict_blocks() == segment(5).nbytes
    segments, covered = store.prompt_segments(tree)
    assert torch.equal(segments[0], segment(2))
    assert covered == 2
    cross = store.cross_segment(tree)
    assert cross is not None
    assert torch.equal(cross, segment(3))
    assert store.evict_blocks() == 0


def test_a_host_that_is_short_of_memory_keeps_nothing_and_gets_nothing_new() -> None:
    store = PrefixCache(10**6, host=HostOffload(CPU, 10**6))
    first, second = store.tree((5, 6)), store.tree((7, 8))
    store.store_prompt(first, segment(2))
    store.evict_blocks()
    store.store_prompt(second, segment(3))
    assert store.evict_host_blocks() == segment(2).nbytes
    assert first.prompt_block is None
    assert (store.nbytes, store.host_blocks.nbytes) == (segment(3).nbytes, 0)
    assert store.evict_host_blocks() == 0
    alone = PrefixCache(10**6)
    alone.store_prompt(alone.tree((5, 6)), segment(2))
    assert alone.evict_host_blocks() == segment(2).nbytes, "on a CPU it is one memory"


def test_a_prompt_that_waits_on_the_host_is_not_counted_twice() -> None:
    store = PrefixCache(10**6, host=HostOffload(CPU, 10**6))
    tree = store.tree((5, 6))
    store.store_prompt(tree, segment(2))
    store.evict_blocks()
    store.acquire(tree)
    store.release(tree)
    assert (store.nbytes, store.host_blocks.nbytes) == (0, segment(2).nbytes)


def test_where_the_host_has_no_memory_either_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(HostOffload, "store", no_memory)
    store = PrefixCache(10**6, host=HostOffload(CPU, 10**6))
    (node,) = grow(store.tree((5,)).root, 1)
    store.store_path([node], segment(1))
    assert store.evict_blocks() == segment(1).nbytes
    assert node.location is None


@pytest.mark.parametrize(("name", "scores_alone"), [("llama", 31_400), ("t5", 148_428)])
def test_tokens_are_the_same_and_nothing_is_computed_again(
    name: str,
    scores_alone: int,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The budget has room for all scores, and then hardly any for keys and values."""
    model = tiny_llama if name == "llama" else make("t5")
    given = {"batch_size": 3, "top": 8}
    plenty, scarce = (Engine(model, tiny_tokenizer, cache_budget=n, **given) for n in (10**8, scores_alone))
    monkeypatch.setattr(HostOffload, "behind", classmethod(lambda cls, device: cls(device, 10**8)))
    fetch, whole = HostOffload.fetch, []

    def noting(memory: HostOffload, part: Segment) -> Segment:
        whole.append(part.is_contiguous())
        return fetch(memory, part)

    monkeypatch.setattr(HostOffload, "fetch", noting)
    behind = Engine(model, tiny_tokenizer, cache_budget=scores_alone, **given)
    for _ in range(2):
        for params in CONFIGURATIONS:
            expected = plenty.generate(PROMPTS, params)
            assert scarce.generate(PROMPTS, params) == expected
            assert behind.generate(PROMPTS, params) == expected
    assert scarce.stats.recomputed_tokens > 0
    assert behind.stats.recomputed_tokens == 0
    assert behind.stats.host_bytes > 0
    assert whole
    assert all(whole), "a part is gathered on the host at once, before its copy may have arrived"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory and its copies need a CUDA device")
def test_page_locked_copies_come_back_bit_for_bit() -> None:
    device = torch.device("cuda")
    memory = HostOffload(device, 10**8)
    for size in (1, 1000, 10**6):
        original = torch.randn(2, 2, 1, size, 2, device=device)
        expected, stored = original.cpu(), memory.store(original)
        del original
        torch.empty(4 * size, device=device).fill_(7)  # takes the place that the original had
        assert stored.is_pinned()
        assert torch.equal(memory.fetch(stored).cpu(), expected)
