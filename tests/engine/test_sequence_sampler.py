"""Sampling that runs out of memory changes no token, and ends only the sequences that do not fit alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine import out_of_memory, sequence_sampler
from llmsearch_optuna.engine.cache.score_arena import candidates_of
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.beam_search import BeamSearch
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.row_scores import RowScores
from llmsearch_optuna.engine.sequence import BeamSequence
from tests.engine.decoding import CONFIGURATIONS, PROMPTS, ended, numpy_has_no_memory, shuffled_requests, tokens_of

HOST_STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "pick": ((sequence_sampler, "pick"),),
    "pick_from_logits": ((sequence_sampler, "pick_from_logits"),),
    "beams": (
        (BeamSearch, "after"),
        (BeamSearch, "_score"),
        (BeamSearch, "_choose"),
        (BeamSearch, "_extended"),
        (BeamSequence, "_children"),
    ),
    "logits processors": ((RowScores, "positions"), (RowScores, "ban")),
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
        patch.setattr(out_of_memory, "give_back", lambda device: None)
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


@pytest.mark.usefixtures("collecting_is_quick")
@pytest.mark.parametrize("step", ["pick", "pick_from_logits"])
def test_rows_that_cannot_be_picked_together_are_picked_in_parts(
    step: str,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, sizes = getattr(sequence_sampler, step), []

    def picking(scores: Any, rows: Sequence[Any]) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            numpy_has_no_memory()
        return whole(scores, rows)

    monkeypatch.setattr(sequence_sampler, step, picking)
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=60_000, top=24)
    for index, params in enumerate(CONFIGURATIONS):
        assert tokens_of(engine, PROMPTS, params) == expected[index]
    assert max(sizes) > 2
    quiet = Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=60_000, top=24)
    monkeypatch.setattr(sequence_sampler, step, whole)
    for params in CONFIGURATIONS:
        tokens_of(quiet, PROMPTS, params)
    assert engine.stats.tokens == quiet.stats.tokens, "no token is counted twice"
    assert engine.stats.lookups == quiet.stats.lookups


@pytest.mark.usefixtures("collecting_is_quick")
def test_a_row_whose_tokens_can_never_be_picked_fails_alone(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    expected: list[list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two trials of three: one samples, one follows beams."""
    pick, after = sequence_sampler.pick, BeamSearch.after

    def picking(candidates: Any, rows: Sequence[Any]) -> Any:
        if any(row.params.generation_seed == 77 and row.step == 3 for row in rows):
            numpy_has_no_memory()
        return pick(candidates, rows)

    def following(search: BeamSearch, scores: Any) -> Any:
        if len(search.running[0]) == 3:
            numpy_has_no_memory()
        return after(search, scores)

    monkeypatch.setattr(sequence_sampler, "pick", picking)
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


def test_beams_of_all_requests_are_read_at_once(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def noting(scores: Any, *given: Any) -> Any:
        read.append(len(scores))
        return candidates_of(scores, *given)

    monkeypatch.setattr(sequence_sampler, "candidates_of", noting)
    params = {"max_new_tokens": 6, "num_beams": 3, "eos_token_id": None}
    Engine(tiny_llama, tiny_tokenizer, batch_size=16).generate(["The quick", "Anna asks Ben", "T"], params)
    assert read == [3, 9, 9, 9, 9, 9]
