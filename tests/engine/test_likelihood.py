"""The log-probability of completions is that of one plain pass over prompt and tokens, however they were decoded."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from tests.engine.architectures import make
from tests.engine.decoding import CONFIGURATIONS, PROMPTS, drain
from tests.engine.memory_limit import MemoryLimit
from tests.engine.thinking import thinking_model, thinking_tokenizer


@torch.no_grad()
def plain_logprob(model: LlamaForCausalLM, prompt_ids: Sequence[int], tokens: Sequence[int]) -> float:
    """The sum of the log-softmax of every token after all that stand before it."""
    logprobs = model(torch.tensor([[*prompt_ids, *tokens]])).logits[0].double().log_softmax(dim=-1)
    first = len(prompt_ids) - 1
    return float(sum(logprobs[first + place, token] for place, token in enumerate(tokens)))


def is_likely(completion: Completion, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> bool:
    expected = plain_logprob(model, tokenizer(prompt)["input_ids"], completion.token_ids)
    assert completion.cumulative_logprob == pytest.approx(expected, abs=1e-3)
    assert completion.mean_logprob == pytest.approx(expected / len(completion.token_ids), abs=2e-4)
    return True


@settings(max_examples=6)
@given(
    choice=st.permutations(range(len(CONFIGURATIONS))).map(lambda order: order[:5]),
    batch_size=st.sampled_from([1, 4, 16]),
    cache_budget=st.sampled_from([0, 60_000, 10_000_000]),
    top=st.sampled_from([1, 8, 64]),
    seed=st.integers(0, 99),
)
def test_it_is_that_of_a_plain_pass_under_any_settings_cache_and_replay(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    choice: list[int],
    batch_size: int,
    cache_budget: int,
    top: int,
    seed: int,
) -> None:
    """Beams are among them; a token outside the largest logits takes all of them; the second time all is replayed."""
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=batch_size, cache_budget=cache_budget, top=top)
    requests = [
        Request((again, index), row, prompt, GenerationParams.of(CONFIGURATIONS[index]), logprobs=True)
        for index in choice
        for row, prompt in enumerate(PROMPTS[:4])
        for again in range(2)
    ]
    random.Random(seed).shuffle(requests)
    for request, completion in drain(engine, requests):
        assert is_likely(completion, tiny_llama, tiny_tokenizer, request.prompt)


def test_only_who_asks_is_told_and_no_token_changes(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    params = {"max_new_tokens": 9, "do_sample": True, "temperature": 1.3, "top_k": 0}
    plain, told = (engine.generate(PROMPTS, params, logprobs=asked) for asked in (False, True))
    assert [c.token_ids for c in plain] == [c.token_ids for c in told]
    assert all(c.cumulative_logprob is None for c in plain)
    assert all(c.cumulative_logprob is not None and c.cumulative_logprob < 0 for c in told)


def test_it_is_the_same_where_memory_runs_out(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    params = {"max_new_tokens": 16, "do_sample": True, "temperature": 1.5, "top_k": 0}
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=16, cache_budget=400_000, top=2)
    with MemoryLimit(150_000) as memory:
        found = engine.generate(PROMPTS, params, logprobs=True)
    assert memory.refused
    for completion, prompt in zip(found, PROMPTS, strict=True):
        assert is_likely(completion, tiny_llama, tiny_tokenizer, prompt)


def test_what_goes_through_model_generate_is_told_it_too(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    for completion, prompt in zip(
        engine.generate(PROMPTS[:2], {"max_new_tokens": 6, "prompt_lookup_num_tokens": 2}, logprobs=True),
        PROMPTS,
        strict=False,
    ):
        assert is_likely(completion, tiny_llama, tiny_tokenizer, prompt)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_encoder_decoder_model_counts_what_its_decoder_wrote(
    beams: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make("t5")
    engine = Engine(model, tiny_tokenizer)
    (found,) = engine.generate([PROMPTS[0]], {"max_new_tokens": 5, "num_beams": beams}, logprobs=True)
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([tiny_tokenizer(PROMPTS[0])["input_ids"]]),
            decoder_input_ids=torch.tensor([[start, *found.token_ids]]),
        ).logits[0]
    logprobs = logits.double().log_softmax(dim=-1)
    expected = sum(float(logprobs[place, token]) for place, token in enumerate(found.token_ids))
    assert found.cumulative_logprob == pytest.approx(expected, abs=1e-3)


def test_tokens_that_close_a_thought_count_as_the_model_sees_them() -> None:
    model, tokenizer = thinking_model(), thinking_tokenizer()
    prompt = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True, open_thinking=True
        )
    )
    engine = Engine(model, tokenizer)
    (found,) = engine.generate([prompt], {"max_new_tokens": 12, "thinking_budget": 3}, logprobs=True)
    assert found.reasoning_tokens
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert found.cumulative_logprob == pytest.approx(plain_logprob(model, ids, found.token_ids), abs=1e-3)
