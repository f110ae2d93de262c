"""Whole heads: telling them from stripped brains, and finding the brain in them.

The networks know brains alone. Stripping is deepbet's work (Fisch et al., 2024; MIT licence), an extra whose models come with it.
"""

from importlib.util import find_spec

import numpy as np
import torch
from scipy import ndimage

from ..runtime.memory import free_memory
from .anatomy import find_anatomy

# Millilitres. Stripped adult brains, with the rims that stripping leaves on, have 900 to 2000; whole heads 2800 and more.
LEAST_BRAIN, LEAST_HEAD = 500, 2300
NEEDED_BYTES = 1 << 30  # deepbet takes 0.75 GB, whatever the head's size
DEEPBET = "deepbet (pip install 'mood-submission[skullstrip]')"


class StrippingError(ValueError):
    """A head in which no brain was found. One line: what was expected and what was found."""


def is_whole_head(data: np.ndarray, spacing: tuple[float, float, float]) -> bool:
    """Whether a scan (X, Y, Z) still has its skull and skin, by the volume that it fills. spacing: mm."""
    anatomy = find_anatomy(data, spacing)
    if anatomy is None:
        return False
    filled = ndimage.binary_fill_holes(anatomy.mask)
    return bool(np.count_nonzero(filled) * float(np.prod(anatomy.spacing)) / 1000 > LEAST_HEAD)


def can_strip() -> bool:
    """Whether deepbet is installed."""
    return find_spec("deepbet") is not None


def brain_mask(data: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Where the brain is in a whole head (X, Y, Z) float32, bool of the same shape; found on the CPU, so alike on every machine.

    spacing: mm. Raises StrippingError without deepbet or memory for it, and where what it finds cannot be a brain.
    """
    if not can_strip():
        raise StrippingError(f"expected {DEEPBET}, found no such package")
    free = free_memory(torch.device("cpu"))
    if free < NEEDED_BYTES:
        raise StrippingError(f"expected {NEEDED_BYTES >> 20} MB of free memory, found {free >> 20} MB")
    from deepbet.bet import BrainExtraction

    strip = BrainExtraction(no_gpu=True)
    try:
        mask = strip.run_model(np.array(data, np.float32, order="C")) > 0.5
        mask = strip.postprocess(mask)
    except (AssertionError, ValueError) as error:  # nothing that could be framed, or no component
        raise StrippingError(f"expected a head with a brain, found none ({error})") from None
    except (RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())[:200]
        raise StrippingError(f"expected a head that deepbet can strip, found: {text}") from None
    found = np.count_nonzero(mask) * float(np.prod(spacing)) / 1000
    if not LEAST_BRAIN <= found <= LEAST_HEAD:
        raise StrippingError(
            f"expected a brain of {LEAST_BRAIN} to {LEAST_HEAD} mL, found one of {found:.0f} mL"
        )
    return mask
