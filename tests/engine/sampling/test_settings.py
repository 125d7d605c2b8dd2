"""Which configurations the sampler can apply, and which need all logits."""

from __future__ import annotations

from llmsearch_optuna.engine.sampling.sampler import needs_full_logits, pick, supports
from tests.engine.sampling.rows import (
    Row,
    make_candidates,
    make_logits,
    make_params,
)


def test_what_needs_all_logits_is_said_beforehand() -> None:
    for values in (
        {"do_sample": True, "tfs": 0.9},
        {"do_sample": True, "top_a": 0.2},
        {"do_sample": True, "top_n_sigma": 1.0},
        {"do_sample": True, "top_k": 0, "typical_p": 0.9},
        {"repetition_penalty": 0.9},
        {"remove_invalid_values": True},
    ):
        assert needs_full_logits(make_params(**values)), values
        assert pick(make_candidates(make_logits("normal", 0), 100), [Row(make_params(**values))]).tolist() == [-1]
    for values in ({}, {"do_sample": True, "typical_p": 0.9}, {"repetition_penalty": 1.1}):
        assert not needs_full_logits(make_params(**values)), values


def test_what_cannot_be_picked_by_row_is_said_with_the_reason() -> None:
    assert supports(make_params(do_sample=True, top_p=0.9, tfs=0.9, repetition_penalty=1.1)) is None
    assert supports(make_params(num_beams=3)) is None
    for values, word in (
        ({"guidance_scale": 1.5}, "second time"),
        ({"watermarking_config": {"greenlist_ratio": 0.25}}, "watermarks"),
        ({"encoder_repetition_penalty": 1.5}, "encoder"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder"),
        ({"token_healing": True}, "prompt"),
        ({"prompt_lookup_num_tokens": 3}, "drafts"),
        ({"cache_implementation": "quantized"}, "quantized"),
    ):
        assert word in str(supports(make_params(**values))), values
