"""A limit on what torch may allocate on a CPU, so that running out of memory happens where it would on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryLimit(TorchDispatchMode):
    """Within it every tensor counts for as long as something holds it; what existed before does not.

    Args:
        limit: Bytes that tensors may take together; one more raises ``torch.OutOfMemoryError``.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.peak = 0
        self.refused = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        self._held = {key: item for key, item in self._held.items() if not item[0].expired()}
        return sum(size for _, size in self._held.values())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id_of(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and id_of(t) not in given]
        for tensor in new:
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if new and (held := self.nbytes) > self.limit:
            self.refused += 1
            wanted = sum(tensor.untyped_storage().nbytes() for tensor in new)
            del new, result, tensor, storage
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {wanted} bytes ({held} held)")
        self.peak = max(self.peak, self.nbytes)
        return result


def id_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
