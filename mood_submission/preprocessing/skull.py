"""Tells whole heads from stripped brains, and finds the brain in a whole head.

The networks are trained on stripped brains. The brain is found by deepbet (Fisch et al., 2024; MIT licence), an optional
package that brings its own weights.
"""

from importlib.util import find_spec

import numpy as np
import torch
from scipy import ndimage

from ..runtime.memory import free_memory
from .anatomy import find_anatomy

# The least volumes of a brain and of a whole head, in ml. Stripped adult brains have 900 to 2000 ml, with the rims that
# stripping leaves on; whole heads have 2800 ml or more.
LEAST_BRAIN, LEAST_HEAD = 500, 2300
# deepbet takes 0.75 GB for heads of any size.
NEEDED_BYTES = 1 << 30
DEEPBET = "deepbet (pip install 'mood-submission[skullstrip]')"


class StrippingError(ValueError):
    """No brain was found in a head. One line says what was expected and what was found."""


def is_whole_head(data: np.ndarray, spacing: tuple[float, float, float]) -> bool:
    """Whether a scan still has its skull and skin, by the volume that it fills.

    data: (X, Y, Z) float, on any scale.
    spacing: (x, y, z) in mm.
    """
    anatomy = find_anatomy(data, spacing)
    if anatomy is None:
        return False
    filled = ndimage.binary_fill_holes(anatomy.mask)
    return bool(np.count_nonzero(filled) * float(np.prod(anatomy.spacing)) / 1000 > LEAST_HEAD)


def can_strip() -> bool:
    """Whether deepbet is installed."""
    return find_spec("deepbet") is not None


def brain_mask(data: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The brain in a whole head, (X, Y, Z) bool. It is found on the CPU, so it is the same on every machine.

    data: (X, Y, Z) float32, on any scale.
    spacing: (x, y, z) in mm.
    Raises StrippingError without deepbet or memory for it, and where its result cannot be a brain.
    """
    if not can_strip():
        raise StrippingError(f"expected {DEEPBET}, found no such package")
    free = free_memory(torch.device("cpu"))
    if free < NEEDED_BYTES:
        raise StrippingError(f"expected {NEEDED_BYTES >> 20} MB of free memory, found {free >> 20} MB")
    from deepbet.bet import BrainExtraction

    strip = BrainExtraction(no_gpu=True)
    try:
        mask: np.ndarray = strip.run_model(np.array(data, np.float32, order="C")) > 0.5
        mask = strip.postprocess(mask)
    # deepbet found nothing to frame, or no component.
    except (AssertionError, ValueError) as error:
        raise StrippingError(f"expected a head with a brain, found none ({error})") from None
    except (RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())[:200]
        raise StrippingError(f"expected a head that deepbet can strip, found: {text}") from None
    found = np.count_nonzero(mask) * float(np.prod(spacing)) / 1000
    if not LEAST_BRAIN <= found <= LEAST_HEAD:
        raise StrippingError(f"expected a brain of {LEAST_BRAIN} to {LEAST_HEAD} mL, found one of {found:.0f} mL")
    return mask
