"""Random changes of training slices, on the device that they are trained on.

The published set (Marimont & Tarroni, 2020, section 3): elastic deformation, scale -15% .. +10%, flip, 5 degrees of
rotation, brightness, contrast, blur, noise. One resampling takes the cached slice to the network's size and deforms it.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .randomise import RandomNumbers
from .resample import affine_of, blur, warp


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes.

    scale: the share by which a slice is made larger, from and to.
    degrees: the largest rotation.
    shift: the longest shift along each axis, as a share of the side.
    elastic: standard deviation of a control point's displacement, as a share of the side. elastic_points: these a side.
    flip: probability of left-right.
    brightness, contrast: the largest change, in the network's intensities and as a share.
    noise: the largest standard deviation, in the network's intensities.
    blur: the largest standard deviation, in pixels.
    share: of the slices that are blurred, that get another brightness and contrast, and that get noise.
    """

    scale: tuple[float, float] = (-0.15, 0.10)
    degrees: float = 5.0
    shift: float = 0.03
    elastic: float = 0.012
    elastic_points: int = 8
    flip: float = 0.5
    brightness: float = 0.10
    contrast: float = 0.15
    noise: float = 0.05
    blur: float = 1.0
    share: float = 0.5


def augment_geometry(slices: Tensor, size: int, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Cached slices (B, S, S) in [0, 1] -> deformed slices (B, size, size) in [0, 1]. Zeros come in from outside."""
    device, count = generator.device, len(slices)
    rand = partial(torch.rand, generator=generator, device=device)
    angle = (rand(count) * 2 - 1) * math.radians(ranges.degrees)
    # A larger picture samples a smaller field.
    zoom = 1 / (1 + ranges.scale[0] + rand(count) * (ranges.scale[1] - ranges.scale[0]))
    mirror = torch.where(rand(count) < ranges.flip, -1.0, 1.0)
    shift = (rand(count, 2) * 2 - 1) * 2 * ranges.shift
    points = torch.randn(count, 2, ranges.elastic_points, ranges.elastic_points, generator=generator, device=device)
    bend = F.interpolate(points * 2 * ranges.elastic, size=(size, size), mode="bicubic", align_corners=True)
    return warp(slices, size, affine_of(angle, zoom, mirror, shift.unbind(1)), bend.movedim(1, -1))


def augment_intensity(slices: Tensor, background: Tensor, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Blur, contrast, brightness and noise of normalised slices (B, H, W). `background` (B, H, W) bool stays as it is."""
    numbers = RandomNumbers(len(slices), False, generator)
    x = torch.where(numbers.often(ranges.share), blur(slices, numbers.uniform(0, ranges.blur)), slices)
    some, gain = numbers.often(ranges.share), numbers.uniform(1 - ranges.contrast, 1 + ranges.contrast)
    x = torch.where(some, x * gain + numbers.uniform(-ranges.brightness, ranges.brightness), x)
    noise = torch.randn(slices.shape, generator=generator, device=slices.device) * numbers.uniform(0, ranges.noise)
    x = torch.where(numbers.often(ranges.share), x + noise, x)
    return torch.where(background, slices, x)
