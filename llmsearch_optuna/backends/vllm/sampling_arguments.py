"""From one row to the arguments of vLLM's `SamplingParams`, and which parameters have none.

Pure functions; vLLM is not needed. Ends (eos tokens, stop strings, stop token sequences) are recognised by this
library, as in its own engine: vLLM ends a row at an eos token or at the length, and is told to break off at the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, RowSettings, not_by_row
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import about_thinking

PROCESSOR = "llmsearch_optuna.backends.vllm.logits_processor:RowKeyedSampler"
"""How vLLM is told of the logits processor."""

_OWN_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_new_tokens": "min_tokens",
    "sequence_bias": "logit_bias",
}
"""Our name -> vLLM's, for what its own sampler takes."""

_BESIDE = ("thinking_token_budget", "response_format")
"""Limits which tokens are possible before anyone picks one, so both samplers go with it."""

_ENDS = ("max_new_tokens", "eos_token_id", "stop", "stop_token_sequences")
_WITHOUT_MEANING = ("do_sample", "generation_seed", "pad_token_id", "bos_token_id", "decoder_start_token_id")
_BEAM_NAMES = ("num_beams", "length_penalty")


def picked_by_row(request: Request) -> dict[str, Any]:
    """Return the arguments of a row whose tokens our logits processor picks."""
    params = _picking(request.params)
    reasoning = request.reasoning if about_thinking(params) else None
    settings = RowSettings(params, request.occurrence, request.replicate, reasoning)
    return {"temperature": 0.0, **_common(request.params), "extra_args": {ARGUMENT: settings.to_json()}}


def picked_by_vllm(request: Request, row_key: int) -> dict[str, Any]:
    """Return the arguments of a row whose tokens vLLM picks itself, on a seed of the row's own."""
    params = request.params
    found = _common(params)
    for ours, theirs in _OWN_FIELDS.items():
        if ours in params:
            value = params[ours]
            found[theirs] = {ids[0]: bias for ids, bias in value} if ours == "sequence_bias" else value
    if params.get("do_sample") is True:
        return {**found, "seed": _seed(params.generation_seed, row_key)}
    return {**found, "temperature": 0.0}


def beam_arguments(params: GenerationParams) -> dict[str, Any]:
    """Return the arguments of vLLM's `BeamSearchParams`."""
    return {
        "beam_width": int(params["num_beams"]),
        "max_tokens": params.max_new_tokens,
        "length_penalty": float(params.get("length_penalty", 1.0)),
        "ignore_eos": not params.eos_token_ids,
    }


def is_beam(params: GenerationParams) -> bool:
    """Whether these parameters ask for beams."""
    return params.kind in ("beam", "beam_sampling")


def refusal(params: Mapping[str, Any], *, by_row: bool) -> str | None:
    """Say what of these parameters cannot be had from vLLM; None where all can.

    Args:
        params: One configuration.
        by_row: Whether our logits processor is loaded.
    """
    complete = GenerationParams.of(params)
    if is_beam(complete):
        return _beam_refusal(complete)
    if by_row:
        reason = not_by_row(_picking(complete))
        return None if reason is None else f"vLLM cannot apply these parameters: {reason}"
    if complete.kind == "assisted":
        return "vLLM cannot apply these parameters: assisted decoding drafts its own tokens"
    known = (*_OWN_FIELDS, *_BESIDE, *_ENDS, *_WITHOUT_MEANING)
    if unknown := [name for name in complete if name not in known]:
        return (
            f"vLLM's own sampler does not take {', '.join(unknown)}; with LLM(..., logits_processors=[{PROCESSOR!r}]) "
            "this library picks the tokens, under all of its parameters but DRY and XTC"
        )
    if any(len(ids) != 1 for ids, _ in complete.get("sequence_bias", ())):
        return "vLLM's own sampler takes sequence_bias only for single tokens"
    return None


def _beam_refusal(params: GenerationParams) -> str | None:
    if params.kind == "beam_sampling":
        return "vLLM's beam search does not sample; leave out do_sample or num_beams"
    known = (*_BEAM_NAMES, "max_new_tokens", "eos_token_id", *_WITHOUT_MEANING)
    unknown = [name for name in params if name not in known]
    return f"vLLM's beam search does not take {', '.join(unknown)}" if unknown else None


@lru_cache(maxsize=256)
def _picking(params: GenerationParams) -> GenerationParams:
    """What our processor has to know: all but what vLLM does before it."""
    if not any(name in params for name in _BESIDE):
        return params
    return GenerationParams.of({name: value for name, value in params.canonical.items() if name not in _BESIDE})


def _common(params: GenerationParams) -> dict[str, Any]:
    return {
        "max_tokens": params.max_new_tokens,
        "stop_token_ids": list(params.eos_token_ids),
        "ignore_eos": True,  # the model's own; those that count here are stop tokens
        "detokenize": False,
        **({"thinking_token_budget": params["thinking_token_budget"]} if "thinking_token_budget" in params else {}),
        **({"structured_outputs": form} if (form := _form(params)) else {}),
    }


def _form(params: GenerationParams) -> dict[str, Any]:
    """``response_format`` of OpenAI's interface, as fields of vLLM's `StructuredOutputsParams`."""
    asked = params.canonical.get("response_format") or {}
    if asked.get("type") == "json_object":
        return {"json_object": True}
    if asked.get("type") == "json_schema":
        return {"json": asked["json_schema"]["schema"]}
    return {}


def _seed(generation_seed: int, row_key: int) -> int:
    digest = hashlib.blake2b(f"{generation_seed}/{row_key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
