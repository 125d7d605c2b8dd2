"""Which part of the machine each worker gets: one GPU where there are GPUs, its share of the threads everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence

GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
THREADS_VARIABLE = "OMP_NUM_THREADS"


def environment(number: int, workers: int, gpus: Sequence[str], cores: int) -> dict[str, str]:
    """The variables with which a worker starts.

    Args:
        number: Which worker, from 0.
        workers: How many there are.
        gpus: What CUDA calls the GPUs; with fewer than workers, they are shared.
        cores: Processor cores for all workers together.
    """
    variables = {THREADS_VARIABLE: str(max(1, cores // workers))}
    if gpus:
        variables[GPUS_VARIABLE] = gpus[number % len(gpus)]
    return variables


def visible_gpus(device: str | None) -> list[str]:
    """What CUDA calls the GPUs that this process may use; none where the study names a device itself.

    Args:
        device: Where the study wants its model.
    """
    import torch

    if device not in (None, "auto", "cuda") or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    given = os.environ.get(GPUS_VARIABLE)
    names = given.split(",") if given else [str(index) for index in range(count)]
    return [name.strip() for name in names[:count]]


def usable_cores() -> int:
    """Processor cores that this process may use, or fewer where the user said so."""
    given = os.environ.get(THREADS_VARIABLE, "")
    if given.isdecimal() and int(given):
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
