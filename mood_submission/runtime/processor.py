"""Says what the processor can do."""

import os
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The flags of processors that multiply int8 four at a time without overflow.
VNNI = ("avx512_vnni", "avx_vnni")
# The flags of processors that multiply bfloat16: x86's, then Arm's. Others compute in it many times slower than in float32.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
# oneDNN's variable that hides instructions, and its values that hide VNNI, and that hide bfloat16 too.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
WITHOUT_BFLOAT16 = (*WITHOUT_VNNI, "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI")


def has_vnni() -> bool:
    """Whether the processor has VNNI, as far as the system says, and the environment does not hide it."""
    return not why_without_vnni()


def why_without_vnni() -> str:
    """Why VNNI is not to be used, in one line. Empty where the processor has it, and the environment does not hide it.

    Only Linux says what the processor has.
    """
    return _why_without(VNNI, WITHOUT_VNNI)


def why_without_bfloat16() -> str:
    """Why bfloat16 is slow on the processor, in one line, as `why_without_vnni` says it. Empty where it is fast."""
    return _why_without(BFLOAT16, WITHOUT_BFLOAT16)


def _why_without(flags: Collection[str], hiding: Collection[str]) -> str:
    """flags: of which the processor is to have one. hiding: values of LIMIT that hide it where it has."""
    wanted = f"expected a processor with {' or '.join(flags)}"
    if (hidden := os.environ.get(LIMIT, "").upper()) in hiding:
        return f"{wanted}, found {LIMIT}={hidden} in the environment, which hides it"
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return f"{wanted}, found a system that does not say whether it has that ({CPUINFO})"
    # x86 has flags, Arm features.
    found = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return "" if any(flag in found for flag in flags) else f"{wanted}, found one without"
