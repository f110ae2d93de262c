"""Says what the processor can do."""

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The flags of processors that multiply int8 four at a time without overflow.
VNNI = ("avx512_vnni", "avx_vnni")
# oneDNN's variable that hides instructions, and its values that hide VNNI.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def has_vnni() -> bool:
    """Whether the processor has VNNI, and the environment does not hide it. False where the system does not say."""
    if os.environ.get(LIMIT, "").upper() in WITHOUT_VNNI:
        return False
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(flag in flags for flag in VNNI)
