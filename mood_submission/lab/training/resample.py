"""Slices warped and blurred, each in its own way."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

HALF = 3  # pixels that the kernel reaches to either side


def blur(slices: Tensor, sigma: Tensor) -> Tensor:
    """Slices (B, H, W), blurred. sigma: (B, 1, 1), or (1, 1, 1) for all alike, in pixels; what is near 0 changes nothing."""
    offsets = torch.arange(-HALF, HALF + 1, device=slices.device, dtype=slices.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma[:, 0].clamp_min(1e-3).square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).expand(len(slices), -1)  # (B, 2 * HALF + 1)
    x = F.pad(slices[None], (HALF,) * 4, mode="replicate")  # slices as channels
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(slices))
    return F.conv2d(x, kernel[:, None, None, :], groups=len(slices))[0]


def warp(slices: Tensor, size: int, affine: Tensor, bend: Tensor) -> Tensor:
    """Slices (B, S, S) sampled at the places of an affine map plus a displacement: (B, size, size); zeros come in from outside.

    affine: (B, 2, 3), or (1, 2, 3) for all alike, and bend: (B, size, size, 2), as `F.grid_sample` has them.
    """
    grid = F.affine_grid(affine.expand(len(slices), -1, -1), [len(slices), 1, size, size], align_corners=False)
    return F.grid_sample(slices[:, None], grid + bend, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def affine_of(angle: Tensor, zoom: Tensor, mirror: Tensor | float, shift: Sequence[Tensor]) -> Tensor:
    """Affine maps (B, 2, 3) for `warp` of B angles, zooms, factors along the first axis and shifts along both."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = ((cos * mirror, -sin, shift[0]), (sin * mirror, cos, shift[1]))
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
