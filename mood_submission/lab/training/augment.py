"""Batches of slices, augmented on the device they are trained on.

The published set (Marimont & Tarroni, 2020, section 3): elastic deformation, scale -15% .. +10%, flip, 5 degrees of
rotation, brightness, contrast, blur, noise. The geometry is one resampling from the cached slice to the network's size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .resample import affine_of, blur, warp


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; lengths in fractions of the slice, intensities in the network's own units."""

    scale: tuple[float, float] = (-0.15, 0.10)
    degrees: float = 5.0
    shift: float = 0.03
    elastic: float = 0.012  # standard deviation of the displacement of a control point
    elastic_points: int = 8  # control points a side
    flip: float = 0.5  # probability of left-right
    brightness: float = 0.10
    contrast: float = 0.15
    noise: float = 0.05  # largest standard deviation
    blur: float = 1.0  # largest standard deviation, pixels
    share: float = 0.5  # of slices that get each of brightness and contrast, noise, blur


def augment_geometry(slices: Tensor, size: int, a: Augmentation, generator: torch.Generator) -> Tensor:
    """Cached slices (B, S, S) in [0, 1] -> deformed slices (B, size, size) in [0, 1]; zeros come in from outside."""
    device, count = generator.device, len(slices)
    rand = lambda *shape: torch.rand(*shape, generator=generator, device=device)  # noqa: E731
    angle = (rand(count) * 2 - 1) * math.radians(a.degrees)
    # a larger picture samples a smaller field
    zoom = 1 / (1 + a.scale[0] + rand(count) * (a.scale[1] - a.scale[0]))
    mirror = torch.where(rand(count) < a.flip, -1.0, 1.0)
    shift = (rand(count, 2) * 2 - 1) * 2 * a.shift
    points = torch.randn(count, 2, a.elastic_points, a.elastic_points, generator=generator, device=device)
    bend = F.interpolate(points * 2 * a.elastic, size=(size, size), mode="bicubic", align_corners=True)
    return warp(slices, size, affine_of(angle, zoom, mirror, shift.unbind(1)), bend.movedim(1, -1))


def augment_intensity(slices: Tensor, background: Tensor, a: Augmentation, generator: torch.Generator) -> Tensor:
    """Blur, contrast, brightness and noise of normalised slices (B, H, W); `background` (B, H, W) bool stays as it is."""
    device, b = slices.device, len(slices)
    rand = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, generator=generator, device=device)  # noqa: E731
    picked = lambda: rand(0, 1) < a.share  # noqa: E731
    x = torch.where(picked(), blur(slices, rand(0, a.blur)), slices)
    x = torch.where(picked(), x * rand(1 - a.contrast, 1 + a.contrast) + rand(-a.brightness, a.brightness), x)
    noise = torch.randn(slices.shape, generator=generator, device=device) * rand(0, a.noise)
    x = torch.where(picked(), x + noise, x)
    return torch.where(background, slices, x)
