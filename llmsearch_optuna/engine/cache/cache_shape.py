"""What one token of one row occupies in a model's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Segment = torch.Tensor
"""Keys and values of consecutive tokens of one row: ``[layers, 2, heads, tokens, head_dim]``."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token of one row occupies; equal in all layers.

    Attributes:
        layers, heads, head_dim: Sizes of the key and of the value tensor of each layer.
        dtype: How they are stored.
        device: Where what is cut out of a cache is stored: where the first layer is.
        devices: Where each layer is, if they are on several devices; else empty.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    devices: tuple[torch.device, ...] = ()

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return self.layers * 2 * self.heads * self.head_dim * self.dtype.itemsize
