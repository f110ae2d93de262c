"""How much memory a device has, batches that fit in it, and what running out of it looks like."""

from collections.abc import Callable
from pathlib import Path

import torch

# what one computation takes of a CPU's memory at most: larger batches are no faster there
CPU_BYTES = 1 << 29
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "anon"),  # version 2, then version 1
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
)
UNKNOWN_BYTES = 4 << 30  # taken to be free where the system does not say


def affordable(bytes_each: int, device: torch.device) -> int:
    """How many rows of `bytes_each` fit in half of the device's free memory, on a CPU in CPU_BYTES; at least 1."""
    budget = free_memory(device) // 2
    return max(1, (min(budget, CPU_BYTES) if device.type == "cpu" else budget) // bytes_each)


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors on the device can have."""
    if device.type == "cuda":  # what torch holds and does not use counts as free
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return UNKNOWN_BYTES
    for folder, limit_file, used_name in CGROUPS:
        try:  # a container's own limit, where there is one; "max" is no number
            limit = int((folder / limit_file).read_text())
            used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, limit - int(used[used_name]))  # the rest are files, which make room when asked
        except (OSError, ValueError, KeyError):
            pass
    return max(0, free)


def in_batches(run: Callable[[int, int, int], None], count: int, size: int) -> None:
    """run(first, last, size) over 0 .. count, `size` at a time, half as many from the point where memory runs out.

    Raises what `run` raises: out of memory only where a batch of one does not fit.
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
    """Whether memory of any kind ran out."""
    known = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")  # CPU allocators, cuBLAS and cuDNN
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in known
    )


def is_gpu_failure(error: Exception) -> bool:
    """Whether it is the GPU's: out of memory, or an error of CUDA or one of its libraries."""
    known = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "NVRTC")
    return (
        is_out_of_memory(error)
        or isinstance(error, RuntimeError)
        and any(text in str(error) for text in known)
    )
