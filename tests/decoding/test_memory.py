"""What counts as running out of memory, and that an error lets go of its tensors."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest
import torch

from llmsearch_optuna.decoding.memory import automatic_cache_budget, forget_traceback, free_bytes, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_these_mean_that_memory_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt(), OSError("disk full")]
)
def test_these_do_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_an_error_lets_go_of_the_tensors_in_its_frames() -> None:
    def fail() -> None:
        tensor = torch.zeros(10)
        references.append(weakref.ref(tensor))
        try:
            raise RuntimeError("inner")
        except RuntimeError as inner:
            raise RuntimeError("outer") from inner

    references: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(RuntimeError) as caught:
        fail()
    error = caught.value
    del caught
    forget_traceback(error)
    gc.collect()
    assert references[0]() is None


def test_the_automatic_budget_is_half_of_what_is_free() -> None:
    device = torch.device("cpu")
    assert 0 < automatic_cache_budget(device) <= free_bytes(device)
