"""Host memory behind a device's: keys and values that have no room on the device wait here until they are asked for.

Copying a row back takes a fraction of the time of computing it again. Copies in both directions are queued on the
device's stream in the order in which they are asked for, through page-locked memory, and nobody waits for them. What
goes when is decided by the prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmsearch_optuna.engine.cache.cache_shape import Segment
from llmsearch_optuna.engine.memory import free_bytes

_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class HostOffload:
    """What may be moved from a device to the host.

    Attributes:
        device: Where keys and values are used.
        budget: Bytes that they may take on the host; 0 where that is the device.
    """

    device: torch.device
    budget: int

    @classmethod
    def behind(cls, device: torch.device) -> HostOffload:
        """Half of the host's free memory, where the device has a memory of its own."""
        # MPS shares the machine's memory: moving something there would free nothing
        return cls(device, free_bytes(_HOST) // 2 if device.type == "cuda" else 0)

    def store(self, segment: Segment) -> Segment:
        """Copy to the host; the device's copy may be dropped at once."""
        page_locked = self.device.type == "cuda"
        copy = torch.empty(segment.shape, dtype=segment.dtype, device=_HOST, pin_memory=page_locked)
        return copy.copy_(segment, non_blocking=page_locked)

    def fetch(self, segment: Segment) -> Segment:
        """Copy what was stored back to the device."""
        return segment.to(self.device, non_blocking=True)
