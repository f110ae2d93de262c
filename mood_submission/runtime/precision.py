"""Sets whether CUDA multiplies float32 exactly or in TF32."""

from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager

import torch

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
