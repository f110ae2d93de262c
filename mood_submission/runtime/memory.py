"""Measures free memory, makes batches that fit in it, and recognises errors of memory and GPUs."""

from collections.abc import Callable

import torch

from .system_memory import free_bytes

# The most memory that one computation takes on a CPU. Larger batches are no faster there.
CPU_BYTES = 1 << 29


def affordable(bytes_each: int, device: torch.device) -> int:
    """How many items of `bytes_each` fit in half of the device's free memory, at least 1. On a CPU, in CPU_BYTES too."""
    budget = free_memory(device) // 2
    return max(1, (min(budget, CPU_BYTES) if device.type == "cpu" else budget) // bytes_each)


def free_memory(device: torch.device) -> int:
    """How many bytes new tensors on the device can take."""
    if device.type == "cuda":
        # Memory that torch holds and does not use is free.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return free_bytes()


def in_batches(run: Callable[[int, int, int], None], count: int, size: int) -> None:
    """Call run(first, last, size) for 0 .. count in batches of `size`, which is halved each time memory runs out.

    Raises what `run` raises, but out-of-memory errors only for batches of one.
    """
    first = 0
    while first < count:
        try:
            run(first, min(first + size, count), size)
            first += size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size = (size + 1) // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of any kind ran out."""
    # What CPU allocators, cuBLAS and cuDNN, and MPS say.
    known = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in known)


def is_gpu_failure(error: Exception) -> bool:
    """Whether an error is the GPU's: out of memory, an error of CUDA or its libraries, or what MPS cannot compute."""
    known = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "NVRTC", "MPS")
    # MPS says by a TypeError that it has no float64.
    kinds = (RuntimeError, TypeError)
    return is_out_of_memory(error) or isinstance(error, kinds) and any(text in str(error) for text in known)
