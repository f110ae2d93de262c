"""Measures free memory, makes batches that fit in it, and recognises errors of memory and GPUs."""

from collections.abc import Callable
from pathlib import Path

import torch

# The most memory that one computation takes on a CPU. Larger batches are no faster there.
CPU_BYTES = 1 << 29
# A container's memory, in version 2 and version 1 of control groups: folder, file of the limit, name of what is used.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "anon"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
)
# The free memory that is assumed where the system does not say.
UNKNOWN_BYTES = 4 << 30


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
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return UNKNOWN_BYTES
    for folder, limit_file, used_name in CGROUPS:
        try:
            # Without a limit the file says "max", which is no number.
            limit = int((folder / limit_file).read_text())
            used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # The other memory in use holds cached files, which make room.
            free = min(free, limit - int(used[used_name]))
        except (OSError, ValueError, KeyError):
            pass
    return max(0, free)


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
    # What CPU allocators, cuBLAS and cuDNN say.
    known = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in known)


def is_gpu_failure(error: Exception) -> bool:
    """Whether an error is the GPU's: out of memory, or an error of CUDA or its libraries."""
    known = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "NVRTC")
    return is_out_of_memory(error) or isinstance(error, RuntimeError) and any(text in str(error) for text in known)
