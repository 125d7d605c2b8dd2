"""The truth that tests compare with: `model.generate` on one unpadded prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


def hf_generate(model: PreTrainedModel, token_ids: Sequence[int], **kwargs: Any) -> list[int]:
    """Return the new tokens of greedy or beam decoding, the ending one included.

    For an encoder-decoder model these are the decoder's tokens after its start token. The keyword arguments are
    Hugging Face's generation parameters; what is not given comes from `model.generation_config`, as in
    `model.generate`. Nothing random: `do_sample=True` is an error here, and the global generators stay untouched.
    """
    if kwargs.get("do_sample"):
        raise ValueError("The oracle does not sample: draws of Hugging Face and ours cannot be compared one by one.")
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, return_dict_in_generate=False)
    unknown = config.update(**kwargs)
    if unknown:
        raise ValueError(f"Not generation parameters: {sorted(unknown)}.")
    return generate_one(model, token_ids, config)


def generate_one(model: PreTrainedModel, token_ids: Sequence[int], config: GenerationConfig) -> list[int]:
    """`model.generate` with exactly this configuration on one prompt; returns the new tokens."""
    prompt = torch.tensor([list(token_ids)], device=model.device)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    start = 1 if model.config.is_encoder_decoder else len(token_ids)
    return [int(token) for token in output[0, start:]]
