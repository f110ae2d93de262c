"""Slices are warped and blurred, each in its own way."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# How many pixels the kernel of `blur` reaches to either side.
HALF = 3


def blur(slices: Tensor, sigma: Tensor) -> Tensor:
    """Slices (B, H, W) blurred by Gaussians.

    sigma: standard deviations in pixels, (B, 1, 1), or (1, 1, 1) for all slices alike. One near 0 changes nothing.
    """
    offsets = torch.arange(-HALF, HALF + 1, device=slices.device, dtype=slices.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma[:, 0].clamp_min(1e-3).square()))
    # (B, 2 * HALF + 1).
    kernel = (kernel / kernel.sum(1, keepdim=True)).expand(len(slices), -1)
    # Each slice is a channel.
    x = F.pad(slices[None], (HALF,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(slices))
    return F.conv2d(x, kernel[:, None, None, :], groups=len(slices))[0]


def warp(slices: Tensor, size: int, affine: Tensor, bend: Tensor) -> Tensor:
    """Slices (B, S, S) sampled at the places of an affine map plus a displacement. Zeros come in from outside.

    affine: (B, 2, 3), or (1, 2, 3) for all slices alike, as `F.affine_grid` takes it.
    bend: (B, size, size, 2), the displacements, in the coordinates of `F.grid_sample`.
    Returns (B, size, size).
    """
    grid = F.affine_grid(affine.expand(len(slices), -1, -1), [len(slices), 1, size, size], align_corners=False)
    return F.grid_sample(slices[:, None], grid + bend, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def affine_of(angle: Tensor, zoom: Tensor, mirror: Tensor | float, shift: Sequence[Tensor]) -> Tensor:
    """Affine maps (B, 2, 3) for `warp`.

    angle: (B,), in radians.
    zoom: (B,). A larger one samples a larger field, which makes the picture smaller.
    mirror: (B,) or one for all, a factor along the first axis: -1 mirrors.
    shift: (B,) along each axis.
    """
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = ((cos * mirror, -sin, shift[0]), (sin * mirror, cos, shift[1]))
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
