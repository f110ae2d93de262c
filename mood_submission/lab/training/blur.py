"""Gaussian blur of a stack of slices, each with a width of its own."""

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
