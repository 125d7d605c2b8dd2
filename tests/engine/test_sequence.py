"""Sequences on their way down a tree, and those with beams beside each other against `model.generate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteriaList

from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import Node, PromptTree
from llmsearch_optuna.engine.cache.score_arena import ScoreArena, candidates_of
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.stop import StopOnSequences
from llmsearch_optuna.engine.sequence import BeamSequence, SequenceFactory, TokenSequence
from tests.engine.architectures import make
from tests.engine.decoding import PROMPTS, drain
from tests.oracle import hf_generate

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


def stored(node: Node, *values: float) -> Node:
    """A node with the scores of all tokens."""
    order = np.argsort(-np.array(values), kind="stable")
    logits = np.array(values, dtype=np.float32)
    largest, tokens, everything = (torch.tensor(part)[None] for part in (logits[order], order, logits))
    (node.scores,) = ScoreArena().store(largest, tokens, everything.logsumexp(dim=-1), everything)
    return node


def make_sequence(tree: PromptTree, tokenizer: PreTrainedTokenizerFast, vocab_size: int, **values: Any) -> Any:
    params = GenerationParams.of({"max_new_tokens": 3, "eos_token_id": 2, **values})
    return SequenceFactory(tokenizer, {}, vocab_size).make(Request("t", 0, "", params), tree)


def test_a_sequence_waits_at_one_node_after_the_other_and_leaves_the_tree(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tree = PrefixCache(0).tree((5, 6))
    sequence = make_sequence(tree, tiny_tokenizer, 4)
    assert isinstance(sequence, TokenSequence)
    assert sequence.frontier == (tree.root,)
    assert tree.root.references == 1
    sequence.advance(3)
    (node,) = sequence.frontier
    assert (tree.root.references, node.references, node.token, sequence.step) == (0, 1, 3, 1)
    assert (sequence.context, sequence.finished) == ([5, 6, 3], False)
    sequence.advance(2)
    assert sequence.finished
    assert sequence.completion().finish_reason == "eos"
    assert sequence.completion().token_ids == (3, 2)
    sequence.leave()
    assert node.references == 0
    assert not tree.root.children, "nothing is kept of what nobody computed"


def test_beams_wait_at_all_their_nodes_and_do_not_move_before_they_are_told(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tree = PrefixCache(0).tree((5, 6))
    sequence = make_sequence(tree, tiny_tokenizer, 4, num_beams=2)
    assert isinstance(sequence, BeamSequence)
    stored(tree.root, 3.0, 1.0, -5.0, 2.0)
    assert tree.root.scores is not None
    largest = candidates_of([tree.root.scores], 4)
    assert sequence.next_beams(replace(largest, values=largest.values[:, :2], ids=largest.ids[:, :2])) is None
    following = sequence.next_beams(largest)
    assert following is not None
    assert not following.looked_up
    from_all = sequence.next_beams_of_all(np.array([[3.0, 1.0, -5.0, 2.0]], np.float32))
    assert from_all.looked_up
    assert from_all.beams.paths == following.beams.paths
    assert from_all.beams.scores == pytest.approx(following.beams.scores)
    assert sequence.frontier == (tree.root,)
    sequence.advance(following)
    assert [node.token for node in sequence.frontier] == [0, 3]
    assert [node.references for node in sequence.frontier] == [1, 1]
    assert tree.root.references == 0
    sequence.leave()
    assert sequence.frontier == ()
