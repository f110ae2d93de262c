"""The precisions that networks compute in: which one is fast, and whether CUDA multiplies float32 exactly or in TF32."""

from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager

import torch

from .processor import why_without_bfloat16

# How parameters can be stored. The published checkpoints alone come in float64.
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
STORED = ("float16", "float32")


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """While open, CUDA multiplies float32 in this precision. It is a context manager and a decorator.

    The setting is the whole process's, and is restored afterwards. Where it is set already, nothing changes. So threads within
    one such context do not undo it for each other.

    precision: "ieee" for float32 as it is, "tf32" for factors rounded to TF32's 10 bits.
    """
    kinds = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    if before == [precision] * len(kinds):
        yield
        return
    try:
        for kind in kinds:
            kind.fp32_precision = precision
        yield
    finally:
        for kind, value in zip(kinds, before):
            kind.fp32_precision = value


def exact_float32() -> _GeneratorContextManager[None]:
    """`float32_as("ieee")`."""
    return float32_as("ieee")


def fast_precision(device: torch.device) -> str:
    """What the device is fast in: "bf16" where it multiplies bfloat16, else "float32"."""
    return "float32" if _why_without_bfloat16(device) else "bf16"


def slow_precision(precision: str, device: torch.device) -> str:
    """Why a precision is slow on the device, in one line. Empty where it is not."""
    why = _why_without_bfloat16(device) if precision == "bf16" else ""
    return why and f"precision bf16: slower here than float32: {why}"


def _why_without_bfloat16(device: torch.device) -> str:
    """In one line. Empty where the device multiplies bfloat16, and for devices that do not say."""
    if device.type == "cpu":
        return why_without_bfloat16()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "expected a GPU that multiplies bfloat16, found one without"
    return ""
