"""Double precision for the few sums that need it, on devices that have none as well."""

from __future__ import annotations

import torch

DEVICES_WITHOUT = frozenset({"mps"})
"""Device types whose tensors cannot be float64."""


def in_double(scores: torch.Tensor) -> torch.Tensor:
    """Scores in float64: on their own device, or on the host where the device has no double precision."""
    return (scores.cpu() if scores.device.type in DEVICES_WITHOUT else scores).double()
