"""Asks the system for its free memory: Linux and its containers, macOS, Windows. Tells it to take free memory back. Asks how much
memory this process has had at most."""

import ctypes
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Linux' own account.
MEMINFO = Path("/proc/meminfo")
# A container's memory, in version 2 and version 1 of control groups: folder, file of the limit, name of what is used.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "anon"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
)
# glibc's numbers of two settings, and what they are set to: blocks of this many bytes are the system's own and go back to it when
# they are freed, and so does what is free at the end of the heap.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGE_BLOCK, FREE_END = 1 << 20, 1 << 17
# The free memory that is assumed where the system does not say.
UNKNOWN_BYTES = 4 << 30


def free_bytes() -> int:
    """How many bytes this process can still take, at least 0. UNKNOWN_BYTES where no system here says it."""
    for ask in SYSTEMS:
        # Each fails on the other systems, by having no such file, function or number.
        try:
            return max(0, ask())
        except (OSError, ValueError, AttributeError, StopIteration):
            continue
    return UNKNOWN_BYTES


def peak_mb() -> float:
    """The most memory, in MB, that this process has had in use so far. NaN on systems that do not tell."""
    try:
        # Windows has no such module.
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def return_large_blocks() -> None:
    """Let memory in large blocks go back to the system as soon as it is freed, from now on. Does nothing where there is no glibc.

    glibc raises its threshold whenever a large block is freed, and from then on keeps such blocks. With small results between them
    its heap grows with each slice.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(TRIM_THRESHOLD, FREE_END)
    except (OSError, AttributeError, TypeError):
        pass


def _on_linux() -> int:
    lines = MEMINFO.read_text("utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([free, *_in_containers()])


def _in_containers() -> list[int]:
    """What the limits of this process's container leave, where it has some."""
    left = []
    for folder, limit_file, used_name in CGROUPS:
        try:
            # Without a limit the file says "max", which is no number.
            limit = int((folder / limit_file).read_text("utf-8"))
            used = dict(line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
            # The other memory in use holds cached files, which make room.
            left.append(limit - int(used[used_name]))
        except (OSError, ValueError, KeyError):
            pass
    return left


class MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    ]


def _on_windows() -> int:
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    # Other systems have no windll.
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
        raise OSError("GlobalMemoryStatusEx")
    return int(status.available)


def _on_macos() -> int:
    # It tells its pages and not which are free: most hold cached files. Half is a guess on the safe side.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


SYSTEMS: tuple[Callable[[], int], ...] = (_on_linux, _on_windows, _on_macos)
