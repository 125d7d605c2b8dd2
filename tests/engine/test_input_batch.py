"""The rows of the running batch: joined, forked, stored and computed again, against the model on each row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import Node
from llmsearch_optuna.engine.input_batch import InputBatch
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.stats import EngineStats

PROMPTS = ((5, 9, 23, 41), (7, 8))


class Bench:
    """A batch over prompts that have been computed; sequences wait for every one of them."""

    def __init__(self, model: LlamaForCausalLM, budget: int) -> None:
        self.model = model
        self.runner = ModelRunner(model)
        self.cache = PrefixCache(budget)
        self.stats = EngineStats()
        self.batch = InputBatch(self.runner.buffer(1), self.cache, self.runner, self.stats)
        self.roots = [self.cache.tree(prompt).root for prompt in PROMPTS]
        for root, result in zip(self.roots, self.runner.prefill(PROMPTS), strict=True):
            self.cache.acquire(root.tree)
            (root.scores,) = self.runner.scores(result.state[None])
            self.cache.store_prompt(root.tree, result.segment)

    def step(self, *nodes: Node) -> None:
        for node in nodes:
            node.acquire()
        self.batch.step(nodes)

    def check(self, node: Node) -> None:
        """Scores are those of the model on the row alone."""
        ids = [*node.tree.start, *(n.token for n in node.path())]
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        assert node.scores is not None
        assert np.allclose(node.scores.values, torch.topk(logits, len(node.scores.values)).values.numpy(), atol=1e-4)


@pytest.mark.parametrize("budget", [0, 10**6])
def test_rows_of_several_prompts_take_a_step_together_and_come_back_later(
    budget: int, tiny_llama: LlamaForCausalLM
) -> None:
    bench = Bench(tiny_llama, budget)
    first, second = bench.roots[0].child(11), bench.roots[1].child(12)
    bench.step(first, second)
    bench.step(first.child(13))  # the other row leaves
    assert len(bench.batch) == 1
    bench.step(second.child(14), first.child(15))  # it joins again, and the first one goes another way
    for node in (first, second, first.child(13), second.child(14), first.child(15)):
        bench.check(node)
    assert (bench.stats.steps, bench.stats.step_rows) == (3, 5)
    assert (bench.stats.recomputed_tokens == 0) is bool(budget), "without a budget what has left is computed again"


def test_a_row_forks_where_two_sequences_go_different_ways(tiny_llama: LlamaForCausalLM) -> None:
    bench = Bench(tiny_llama, 0)
    first = bench.roots[0].child(11)
    bench.step(first)
    ways = [first.child(token) for token in (13, 15, 17)]
    bench.step(*ways)
    assert len(bench.batch) == 3
    assert bench.stats.recomputed_tokens == 0
    for node in ways:
        bench.check(node)


def test_a_batch_that_is_discarded_begins_anew_and_keeps_scores(tiny_llama: LlamaForCausalLM) -> None:
    bench = Bench(tiny_llama, 10**6)
    first = bench.roots[0].child(11)
    bench.step(first)
    bench.batch.discard()
    assert (len(bench.batch), bench.batch.buffer.nbytes) == (0, 0)
    assert first.scores is not None
    bench.step(first.child(13))
    bench.check(first.child(13))
    assert bench.stats.recomputed_tokens == 1
