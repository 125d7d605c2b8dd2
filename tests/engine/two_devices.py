"""Devices that are not there: tensors that claim to be on one, and refuse to meet those of another as CUDA's do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

DEVICES = (torch.device("meta", 0), torch.device("meta", 1))
"""Of a type that torch can guard on every machine."""

CPU = torch.device("cpu")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::to")


class Placed(torch.Tensor):
    """A tensor on one of these devices; its numbers are in ``inner``, on the processor."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Placed:
        made: Placed = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def item(self) -> Any:
        """Its number; torch asks no tensor of this type of device for it."""
        return self.inner.item()

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    def __float__(self) -> float:
        return float(self.inner)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def devices() -> Iterator[None]:
    """In here tensors can be made on and moved to these devices."""
    with torch.inference_mode(), _Made(), _Moved():  # a view of such a tensor is of the same kind as the tensor
        yield


class _Made(TorchFunctionMode):
    """Makes tensors of numbers on the processor first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and given.get("device") in DEVICES:
            return func(*args, **{**given, "device": CPU}).to(given["device"])
        return func(*args, **given)


class _Moved(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def spread(model: PreTrainedModel, near: torch.device = DEVICES[0], far: torch.device = DEVICES[1]) -> PreTrainedModel:
    """Put the second half of a model's layers, and what follows them, on another device; inputs move there."""
    body = model.base_model
    layers: Any = body.layers
    last = {id(m) for part in (*layers[len(layers) // 2 :], body.norm, model.lm_head) for m in part.modules()}
    for module in model.modules():
        device = far if id(module) in last else near
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    own[name] = _placed(tensor.detach(), device)  # type: ignore[assignment]
        if id(module) in last:
            module.register_forward_pre_hook(_bring(device), with_kwargs=True)
    return model


def _placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return Placed(tensor, device) if device in DEVICES else tensor.to(device)


def _bring(device: torch.device) -> Any:
    def hook(module: object, args: Any, kwargs: Any) -> Any:
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (args, kwargs))

    return hook


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    places = {tensor.device for tensor in tensors if isinstance(tensor, Placed) or tensor.dim()}
    name = func._schema.name
    if len(places) > 1 and name not in COPIES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {places}")
    source = tensors[0].device if tensors else CPU
    target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), source)
    found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if name.endswith("_") and not name.endswith("__") and isinstance(tensors[0], Placed):  # it was changed in place
        return tensors[0]
    if source != target and tensors and found is _plain(tensors[0]):
        found = found.clone()
    if target == CPU:
        return found
    return tree_map(lambda x: Placed(x, target) if isinstance(x, torch.Tensor) else x, found)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.inner if isinstance(value, Placed) else value
