"""How likely a text is under a model: one pass over all of its tokens, for what was not decoded token by token."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmsearch_optuna.engine.sampling.params import GenerationParams


@torch.inference_mode()
def cumulative_logprob(
    model: PreTrainedModel, prompt_ids: Sequence[int], token_ids: Sequence[int], params: GenerationParams
) -> float:
    """Return the sum of the log-probabilities of tokens that follow a prompt, under the model's own logits.

    Args:
        model: Decoder-only or encoder-decoder, in evaluation mode.
        prompt_ids: The prompt.
        token_ids: What follows.
        params: Say what an encoder-decoder model's decoder begins with.
    """
    if not token_ids:
        return 0.0
    tokens = torch.tensor([list(token_ids)], device=model.device)
    logits = _logits(model, torch.tensor([list(prompt_ids)], device=model.device), tokens, params)[0].float()
    picked = logits.gather(1, tokens[0, :, None].to(logits.device)).flatten()
    return float((picked.double() - logits.logsumexp(dim=-1).double()).sum())


def _logits(model: Any, prompt: torch.Tensor, tokens: torch.Tensor, params: GenerationParams) -> torch.Tensor:
    """The logits that each token was picked from, ``[1, tokens, vocab]``."""
    count = tokens.shape[1]
    if model.config.is_encoder_decoder:
        given = (params.get("decoder_start_token_id"), model.generation_config.decoder_start_token_id)
        start = next((s for s in given if s is not None), model.config.decoder_start_token_id)
        starts = list(start) if isinstance(start, list | tuple) else [start]
        begun = torch.cat((torch.tensor([starts], device=tokens.device), tokens[:, :-1]), dim=1)
        found: torch.Tensor = model(input_ids=prompt, decoder_input_ids=begun).logits
        return found[:, -count:]
    takes_less = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": count} if takes_less else {}
    found = model(input_ids=torch.cat((prompt, tokens[:, :-1]), dim=1), use_cache=False, **kept).logits
    return found[:, -count:]
