"""A stand-in for AutoAWQ's fused layers: keys and values stay inside, and no cache comes back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast


class OwnCacheBody(torch.nn.Module):
    """Goes on from its last call when it gets one token, and starts anew when it gets several."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.embed_tokens = body.embed_tokens
        self._cache = DynamicCache()

    @torch.inference_mode()
    def forward(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        if input_ids.shape[1] > 1 or (self._cache.layers and self._cache.layers[0].keys.shape[0] != len(input_ids)):
            self._cache = DynamicCache()
        output = self.body(input_ids=input_ids, past_key_values=self._cache, use_cache=True)
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state, past_key_values=None)


def with_own_cache(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy of the model that keeps its cache to itself."""
    made = copy.deepcopy(model)
    made.model = OwnCacheBody(made.model)
    return made
