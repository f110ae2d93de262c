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
    """Whether the processor has VNNI, as far as the system says, and the environment does not hide it."""
    return not why_without_vnni()


def why_without_vnni() -> str:
    """Why VNNI is not to be used, in one line. Empty where the processor has it, and the environment does not hide it.

    Only Linux says what the processor has.
    """
    wanted = f"expected a processor with {' or '.join(VNNI)}"
    if (hidden := os.environ.get(LIMIT, "").upper()) in WITHOUT_VNNI:
        return f"{wanted}, found {LIMIT}={hidden} in the environment, which hides it"
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return f"{wanted}, found a system that does not say whether it has that ({CPUINFO})"
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "" if any(flag in flags for flag in VNNI) else f"{wanted}, found one without"
