"""The shared fixtures are what the tests that use them assume."""

from __future__ import annotations

import torch


def test_tokenizer_round_trips_and_fits_the_model(tiny_tokenizer, tiny_llama):
    text = "Anna has 7 apples; Ben leaves at seven."
    ids = tiny_tokenizer(text)["input_ids"]
    assert tiny_tokenizer.decode(ids) == text
    assert len(tiny_tokenizer) <= tiny_llama.config.vocab_size == 199
    assert max(ids) < 199
    assert (tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id) == (0, 1, 2)
    assert tiny_tokenizer.chat_template is None


def test_logits_are_not_flat(tiny_llama, tiny_tokenizer):
    ids = torch.tensor([tiny_tokenizer("The quick brown fox")["input_ids"]])
    with torch.inference_mode():
        probabilities = tiny_llama(ids).logits[0, -1].softmax(-1)
    top = probabilities.topk(2).values
    assert probabilities.max() > 5 / 199
    assert top[0] - top[1] > 1e-3


def test_greedy_decoding_varies(tiny_llama, tiny_tokenizer):
    ids = torch.tensor([tiny_tokenizer("Thank you very much!")["input_ids"]])
    output = tiny_llama.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert len(set(output.tolist())) >= 4
