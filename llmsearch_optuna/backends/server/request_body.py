"""From one row and its parameters to the request that a server of a certain dialect understands.

Pure functions: nothing is sent here, and whether a parameter can be expressed at all is asked before a study begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.backends.server.dialect import DIALECTS, Dialect
from llmsearch_optuna.backends.vllm import sampling_arguments
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.param_specs import NAMES_BESIDE_HUGGING_FACE, known_names
from llmsearch_optuna.engine.sampling.params import GenerationParams

_STRATEGY = ("do_sample", "generation_seed")
"""Say how the others are meant; they have no field of their own."""


@dataclass(frozen=True)
class ServerRequest:
    """What is posted.

    Attributes:
        path: Below the server's address: ``/chat/completions`` or ``/completions``.
        body: Its JSON.
    """

    path: str
    body: Mapping[str, Any]


def server_request(dialect: Dialect, model: str, request: Request, token_ids: Sequence[int] | None) -> ServerRequest:
    """Return what a row is asked as.

    Args:
        dialect: The server's.
        model: What the server calls its model.
        request: The row and its parameters.
        token_ids: Its prompt in tokens, where the server is to get these.
    """
    body = {"model": model, **_picking_fields(dialect, request), **dialect.constant}
    if request.chat is None:
        return ServerRequest("/completions", {**body, "prompt": request.prompt if token_ids is None else [*token_ids]})
    body = {dialect.chat_names.get(name, name): value for name, value in body.items()}
    body["messages"] = [dict(message) for message in request.chat.messages]
    if request.chat.messages[-1]["role"] == "assistant" and dialect.continues_messages:
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    variables = dict(request.chat.template_kwargs)
    if (tools := variables.pop("tools", None)) is not None:  # a variable of templates, and a field of the interface
        body["tools"] = list(tools)
    if variables:
        body["chat_template_kwargs"] = variables
    return ServerRequest("/chat/completions", body)


def _picking_fields(dialect: Dialect, request: Request) -> dict[str, Any]:
    """What says how the row's tokens are picked."""
    if dialect.picks_by_row and not sampling_arguments.is_beam(request.params):
        return _by_row_fields(dialect, request)
    seed = {"seed": row_seed(request)} if request.params.get("do_sample") is True else {}
    return {**sampling_fields(dialect, request.params), **seed}


def _by_row_fields(dialect: Dialect, request: Request) -> dict[str, Any]:
    """What says so to our own logits processor; ends and forms of the answer are still the server's."""
    params = request.params
    picked = sampling_arguments.picked_by_row(request)
    ends = [*params.eos_token_ids, *(sequence[0] for sequence in params.stop_token_sequences)]
    return {
        **dialect.neutral,
        **dialect.greedy,
        "max_tokens": params.max_new_tokens,
        "vllm_xargs": picked["extra_args"],
        **({"stop": list(params.stop)} if params.stop else {}),
        **({"stop_token_ids": ends} if ends else {}),
        **({"ignore_eos": True} if params.eos_token_ids else {}),
        **{name: params.canonical[name] for name in ("response_format", "thinking_token_budget") if name in params},
    }


def sampling_fields(dialect: Dialect, params: GenerationParams) -> dict[str, Any]:
    """Return the fields that say how tokens are picked, those included that switch the server's own defaults off.

    Args:
        dialect: The server's.
        params: All of which it can be asked for (see `refusal`).
    """
    is_sampled = params.get("do_sample") is True
    picked = dict(dialect.neutral)
    for name, value in params.items():
        if name not in _STRATEGY and name not in dialect.unchangeable and _takes(dialect, name):
            picked |= _fields(dialect, name, value)
    if not is_sampled:
        picked |= dialect.greedy
    if not dialect.generation_config:
        return picked
    outside = {dialect.fields[name] for name in dialect.fields}
    config = {name: value for name, value in picked.items() if name not in outside}
    config.setdefault("do_sample", is_sampled)
    return {
        **{name: value for name, value in picked.items() if name in outside},
        "generation_config": json.dumps(config, sort_keys=True),
    }


def refusal(dialect: Dialect, params: Mapping[str, Any]) -> str | None:
    """Say what of these parameters the server cannot be asked for, and which servers take it; None where it can all.

    >>> from llmsearch_optuna.backends.server.dialect import VLLM
    >>> refusal(VLLM, {"max_new_tokens": 8, "do_sample": True, "typical_p": 0.9})
    'vllm does not take typical_p (llama.cpp, transformers do)'
    """
    if dialect.picks_by_row and not sampling_arguments.is_beam(complete := GenerationParams.of(params)):
        if any(len(sequence) != 1 for sequence in complete.stop_token_sequences):
            return f"{dialect.name} takes stop_token_sequences only for single tokens"
        return sampling_arguments.refusal(complete, by_row=True)
    problems = [problem for name in params if (problem := _problem(dialect, name, params)) is not None]
    return "; ".join(problems) or None


def text_refusal(dialect: Dialect, request: Request) -> str | None:
    """Say which parameters a row that is asked as a text cannot have; None for messages, and where it can have all.

    Args:
        dialect: The server's.
        request: The row and its parameters.
    """
    names = sorted(dialect.chat_only.intersection(request.params)) if request.chat is None else []
    if not names:
        return None
    return f"{dialect.name} takes {', '.join(names)} with messages only, and this prompt goes to it as a text"


def row_seed(request: Request) -> int:
    """Return the seed of a row: 31 bits that follow from the generation seed, the row and the replicate."""
    chat = request.chat
    asked = request.prompt if chat is None else json.dumps(chat.messages, sort_keys=True, default=str)
    named = json.dumps([request.params.generation_seed, asked, request.occurrence, request.replicate])
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=4).digest(), "little") >> 1


def _problem(dialect: Dialect, name: str, params: Mapping[str, Any]) -> str | None:
    value = params[name]
    if name in _STRATEGY:
        return None
    if name in dialect.unchangeable:
        fixed = dialect.unchangeable[name]
        is_meant = value == fixed or params.get("do_sample") is not True
        return None if is_meant else f"{dialect.name} takes no {name} and applies {fixed}, not {name}={value!r}"
    if not _takes(dialect, name):
        if name == "top_k" and value == 0:  # off, which GenerationParams always says
            return None
        others = [other.name for other in DIALECTS.values() if _takes(other, name)]
        told = f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}" if others else "no server does"
        return f"{dialect.name} does not take {name} ({told})"
    if name == "stop" and dialect.max_stops is not None and len(value) > dialect.max_stops:
        return f"{dialect.name} takes {dialect.max_stops} stop strings at most, and there are {len(value)}"
    if name in ("sequence_bias", "stop_token_sequences") and not dialect.generation_config:
        sequences = [pair[0] for pair in value] if name == "sequence_bias" else value
        if any(len(sequence) != 1 for sequence in sequences):
            return f"{dialect.name} takes {name} only for single tokens"
    return None


def _takes(dialect: Dialect, name: str) -> bool:
    if name in dialect.fields:
        return True
    return dialect.generation_config and name in known_names() and name not in NAMES_BESIDE_HUGGING_FACE


def _fields(dialect: Dialect, name: str, value: Any) -> dict[str, Any]:
    """The field, or the two, that a parameter becomes."""
    field = dialect.fields.get(name, name)
    if dialect.generation_config and name not in dialect.fields:
        return {name: value}
    if name == "sequence_bias":
        return {field: {str(ids[0]): bias for ids, bias in value}}
    if name == "stop_token_sequences":
        return {field: [sequence[0] for sequence in value]}
    if name == "num_beams":
        return {field: value, "use_beam_search": True}
    if name == "thinking_budget" and field == "custom_params":
        return {field: {name: value}}
    return {field: dialect.value(name, value)}
