"""Hashes of a model's weights and of a tokenizer: the same in every process, another one when anything changes.

Only reads; nothing is moved or changed on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_CHUNK = 1 << 26  # bytes that are copied to the host at a time


def hash_weights(model: torch.nn.Module) -> str:
    """Return a hash over names, types, shapes and values of all parameters and persistent buffers, in hex.

    Tied tensors are read once; tensors that are offloaded to a disk (on the meta device) count by shape only.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    distinct = {_place(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter lock
        digests = dict(zip(distinct, pool.map(_hash_tensor, distinct.values()), strict=True))
    total = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(digests[_place(tensor)])
    return total.hexdigest()


def hash_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return hashes of how a tokenizer splits text and of its chat template, each by its own name."""
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer": _hash_text(_splitting(tokenizer)),
        "chat_template": None if template is None else _hash_text(json.dumps(template, sort_keys=True)),
    }


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.device.type == "meta":
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _hash_tensor(tensor: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    if tensor.device.type != "meta" and tensor.numel() > 0:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _CHUNK):
            digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.digest()


def _splitting(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    if backend is None:
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), special], sort_keys=True)
    rules: Mapping[str, Any] = json.loads(backend.to_str())
    # padding and truncation are left by whoever used it last
    kept = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    return json.dumps([kept, special], sort_keys=True)


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
