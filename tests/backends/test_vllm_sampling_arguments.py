"""What of a configuration vLLM is asked for, and what it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT
from llmsearch_optuna.backends.vllm.sampling_arguments import beam_arguments, picked_by_row, picked_by_vllm, refusal
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams


def request(replicate: int = 0, **given: Any) -> Request:
    params = GenerationParams.of({"max_new_tokens": 9, "eos_token_id": [2, 7], **given})
    return Request("t", 0, "text", params, occurrence=1, replicate=replicate)


def test_with_our_processor_vllm_picks_nothing() -> None:
    found = picked_by_row(request(replicate=4, do_sample=True, temperature=0.7, typical_p=0.5, presence_penalty=0.5))
    sent = json.loads(found.pop("extra_args")[ARGUMENT])
    assert found == {
        "temperature": 0.0, "max_tokens": 9, "stop_token_ids": [2, 7], "ignore_eos": True, "detokenize": False,
    }  # fmt: skip
    assert (sent["occurrence"], sent["replicate"]) == (1, 4)
    assert json.loads(sent["params"])["presence_penalty"] == 0.5


def test_vllms_own_sampler_gets_its_own_names_and_a_seed_a_row() -> None:
    asked = {"do_sample": True, "top_k": 4, "min_p": 0.1, "min_new_tokens": 3, "sequence_bias": [[[5], -2.0]]}
    found = picked_by_vllm(request(**asked), row_key=3)
    assert found["min_tokens"] == 3
    assert found["logit_bias"] == {5: -2.0}
    assert (found["top_k"], found["min_p"]) == (4, 0.1)
    assert "temperature" not in found
    seeds = {picked_by_vllm(request(**asked | {"generation_seed": s}), k)["seed"] for s in (0, 1) for k in (3, 4)}
    assert len(seeds) == 4
    assert "seed" not in picked_by_vllm(request(), row_key=3)
    assert picked_by_vllm(request(), row_key=3)["temperature"] == 0.0


def test_forms_of_the_answer_go_to_vllm_in_its_words() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    assert picked_by_row(request(response_format=schema))["structured_outputs"] == {"json": {"type": "object"}}
    found = picked_by_row(request(response_format={"type": "json_object"}, thinking_token_budget=5))
    assert found["structured_outputs"] == {"json_object": True}
    assert found["thinking_token_budget"] == 5
    assert "response_format" not in found["extra_args"][ARGUMENT]
    assert "structured_outputs" not in picked_by_row(request(response_format={"type": "text"}))


def test_beams_are_vllms() -> None:
    found = beam_arguments(request(num_beams=3, length_penalty=0.4).params)
    assert found == {"beam_width": 3, "max_tokens": 9, "length_penalty": 0.4, "ignore_eos": False}


@pytest.mark.parametrize(
    ("given", "by_row", "plain"),
    [
        ({"do_sample": True, "top_p": 0.5, "presence_penalty": 1.0}, None, None),
        ({"do_sample": True, "typical_p": 0.5}, None, "does not take typical_p; with LLM"),
        ({"no_repeat_ngram_size": 3}, None, "does not take no_repeat_ngram_size"),
        ({"sequence_bias": [[[5, 6], 1.0]]}, None, "only for single tokens"),
        ({"guidance_scale": 2.0}, "without the prompt", "does not take guidance_scale"),
        ({"prompt_lookup_num_tokens": 3}, "assisted needs more than one row", "drafts its own"),
        ({"dry_multiplier": 1.0}, "does not know dry_multiplier", "does not take dry_multiplier"),
        ({"num_beams": 2, "do_sample": True}, "does not sample", "does not sample"),
        ({"num_beams": 2, "stop": ["x"]}, "beam search does not take stop", "beam search does not take stop"),
        ({"num_beams": 2, "length_penalty": 2.0}, None, None),
    ],
)
def test_what_cannot_be_had_is_said(given: dict[str, Any], by_row: str | None, plain: str | None) -> None:
    for processor, said in ((True, by_row), (False, plain)):
        found = refusal(request(**given).params, by_row=processor)
        assert (found is None) == (said is None)
        assert said is None or (found is not None and said in found)
