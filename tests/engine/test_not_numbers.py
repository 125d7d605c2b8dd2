"""Logits that are NaN or infinite end the rows that have them, with one error, and change no other row."""

from __future__ import annotations

import copy
import string
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.numbers_only import NumbersOnly
from llmsearch_optuna.engine.sampling.params import GenerationParams
from tests.engine.decoding import ended

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0},
    "untruncated": {"do_sample": True, "top_k": 0},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "mirostat": {"do_sample": True, "top_k": 0, "mirostat_mode": 2},
    "beams": {"num_beams": 3},
}
GOOD = ["Anna asks Ben", "Ben has seven apples", "Do you have a train"]


def outcomes(engine: Engine, prompts: list[str], params: dict[str, Any]) -> list[Any]:
    """The token ids of each row, or the words of its error."""
    complete = GenerationParams.of({"max_new_tokens": 6, **params}, engine.default_params)
    requests = [Request("t", row, prompt, complete) for row, prompt in enumerate(prompts)]
    found = sorted(ended(engine, requests), key=lambda item: item.request.row)
    return [item.completion.token_ids if item.completion else str(item.error) for item in found]


def broken_on_one_text(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, value: float, expected: list[Any]
) -> tuple[LlamaForCausalLM, str]:
    """The model with one embedding of this value, and a text that meets it; the good texts and their answers do not."""
    met = {token for row in expected for token in row} | {i for text in GOOD for i in tokenizer(text)["input_ids"]}
    bad_text = next(letter for letter in string.ascii_letters if not met & set(tokenizer(letter)["input_ids"]))
    broken = copy.deepcopy(model)
    embeddings = torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach().clone())
    embeddings.weight[tokenizer(bad_text)["input_ids"][-1]] = value
    broken.set_input_embeddings(embeddings)
    return broken, bad_text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_only_the_row_that_meets_them_ends(
    name: str, value: float, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = outcomes(Engine(tiny_llama, tiny_tokenizer), GOOD, CONFIGURATIONS[name])
    broken, bad_text = broken_on_one_text(tiny_llama, tiny_tokenizer, value, expected)
    for samples_on_device in (False, True):
        engine = Engine(broken, tiny_tokenizer, batch_size=2)
        engine._runner.samples_on_device = samples_on_device
        *good, bad = outcomes(engine, [*GOOD, bad_text], CONFIGURATIONS[name])
        assert good == expected
        assert bad == (
            "the logits after 0 new tokens are not numbers (NaN or infinite), in float32; look at the weights"
        )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_model_whose_weights_are_no_numbers_ends_every_row(
    name: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    broken = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    found = outcomes(Engine(broken.to(torch.float16), tiny_tokenizer), GOOD, CONFIGURATIONS[name])
    assert set(found) == {
        "the logits after 0 new tokens are not numbers (NaN or infinite), in float16; try bfloat16 or float32"
    }


ON_THE_PLAIN_PATH: dict[str, dict[str, Any]] = {
    "greedy": {"encoder_repetition_penalty": 1.2},
    "sampling": {"do_sample": True, "encoder_repetition_penalty": 1.2},
    "beams": {"num_beams": 3, "encoder_repetition_penalty": 1.2},
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ON_THE_PLAIN_PATH)
def test_on_the_plain_path_too_only_the_row_that_meets_them_ends(
    name: str, value: float, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = outcomes(Engine(tiny_llama, tiny_tokenizer), GOOD, ON_THE_PLAIN_PATH[name])
    broken, bad_text = broken_on_one_text(tiny_llama, tiny_tokenizer, value, expected)
    *good, bad = outcomes(Engine(broken, tiny_tokenizer, batch_size=8), [*GOOD, bad_text], ON_THE_PLAIN_PATH[name])
    assert good == expected
    assert bad == "the logits after 0 new tokens are not numbers (NaN or infinite), in float32; look at the weights"


def test_what_comes_behind_the_end_of_a_row_does_not_count() -> None:
    numbers = NumbersOnly(2)
    scores = torch.zeros(4, 5)
    numbers(torch.zeros(4, 7, dtype=torch.int64), scores)
    scores[1, 2] = torch.nan
    scores[3, 0] = -torch.inf
    assert numbers(torch.zeros(4, 8, dtype=torch.int64), scores)[1].tolist() == [0.0] * 5
    numbers(torch.zeros(4, 9, dtype=torch.int64), scores)
    assert numbers.lengths() == [8, None]
