"""Memory: what is free, what counts as running out of it, and what the caches may take.

NVML (through nvidia-ml-py) and psutil are asked here and nowhere else.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

import psutil
import torch

logger = logging.getLogger("llmsearch_optuna.memory")

OUT_OF_MEMORY_MESSAGES = (
    "out of memory",  # CUDA, HIP, MPS ("MPS backend out of memory"), XPU
    "can't allocate memory",  # the CPU allocator: "DefaultCPUAllocator: can't allocate memory"
    "not enough memory",  # the CPU allocator's wording on Windows
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cusolver_status_alloc_failed",
    "failed to allocate memory",
    "unable to allocate",  # numpy
    "std::bad_alloc",
    "cannot allocate memory",  # errno ENOMEM
)
"""Lower-case parts of the messages with which allocators say that there is no more memory."""

MIDDLE_LENGTH = 1024
"""Tokens of a row of middle length, prompt included."""

SCORES_AT_ONCE = 4
"""Copies of a row's scores (in float32) that may be alive together."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError | OSError):
        return False
    message = str(error).lower()
    return any(part in message for part in OUT_OF_MEMORY_MESSAGES)


def forget_traceback(error: BaseException) -> None:
    """Let go of the tensors that an error's frames keep alive, through all its causes."""
    seen: set[int] = set()
    stack: list[BaseException | None] = [error]
    while stack:
        current = stack.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        stack += [current.__cause__, current.__context__]
        current.__traceback__ = None
        current.__cause__ = current.__context__ = None


def give_back(device: torch.device) -> None:
    """Return unused memory from the allocator's cache to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors on this device could take."""
    if device.type == "cuda":
        return _free_cuda_bytes(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(int(psutil.virtual_memory().available), _address_space_left())


def cache_bytes_per_token(config: Any, item_bytes: int) -> int | None:
    """Bytes of one token's keys and values in all layers, by a model's configuration; None where it does not say.

    Of an encoder-decoder model it is the decoder's layers, which keep as much for a token of the prompt as for their
    own. Layers that keep less than full attention does are counted like the others.

    Args:
        config: A transformers configuration.
        item_bytes: Size of one number.
    """
    text = config.get_text_config()
    layers = _size(text, "num_decoder_layers", "decoder_layers", "num_hidden_layers")
    queries = _size(text, "decoder_attention_heads", "num_attention_heads")
    hidden = _size(text, "hidden_size")
    if layers is None or queries is None or hidden is None:
        return None
    latent, rotated = _size(text, "kv_lora_rank"), _size(text, "qk_rope_head_dim")
    if latent is not None and rotated is not None:  # DeepSeek's attention keeps one vector for all heads
        return layers * (latent + rotated) * item_bytes
    heads = _size(text, "num_key_value_heads") or queries
    head_dim = _size(text, "head_dim") or hidden // queries
    return layers * heads * 2 * head_dim * item_bytes


def rows_that_fit(free: int, bytes_per_token: int, vocab_size: int, tokens: int = MIDDLE_LENGTH) -> int:
    """How many rows of so many tokens take half of the free bytes; the other half is for what a pass needs beside."""
    return free // 2 // (tokens * bytes_per_token + SCORES_AT_ONCE * vocab_size * 4)


def allocated_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor of its own takes; torch rounds page-locked memory up to a power of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if tensor.nbytes and tensor.is_pinned() else tensor.nbytes


def device_name(device: torch.device) -> str:
    """A name under which the sizes that fit can be remembered: the kind of device, and how much memory it has."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def bytes_in_use() -> int:
    """Memory that this process has taken: of its CUDA devices where it uses any, else of the machine."""
    on_gpus = gpu_bytes()
    return process_bytes() if on_gpus is None else on_gpus


def process_bytes() -> int:
    """Main memory that this process takes."""
    return int(psutil.Process().memory_info().rss)


def gpu_bytes() -> int | None:
    """Memory that torch holds on the CUDA devices for this process; None where it uses none."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def automatic_cache_budget(device: torch.device) -> int:
    """Half of the memory that is left once the model is loaded."""
    return free_bytes(device) // 2


def _size(config: Any, *names: str) -> int | None:
    """The first of these settings that is a number above 0."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _free_cuda_bytes(device: torch.device) -> int:
    """What NVML calls free, plus what torch's allocator holds without using it."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    idle = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    free = _free_by_nvml(index)
    return (torch.cuda.mem_get_info(index)[0] if free is None else free) + idle


def _free_by_nvml(index: int) -> int | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            uuid = str(torch.cuda.get_device_properties(index).uuid)
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:  # NVML is absent or refuses: torch's own figure serves
        logger.debug("NVML gave no figure: %s", error)
        return None


def _address_space_left() -> int:
    """What a limit on the address space (``ulimit -v``, RLIMIT_AS) leaves to this process."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 2**62
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return 2**62
    return max(0, soft - int(psutil.Process().memory_info().vms))
