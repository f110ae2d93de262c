"""Gaussian smoothing along an axis of a stack of maps, and the mean of what is highest in it."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..runtime.precision import exact_float32

TOP_SHARE = 5e-4  # of a volume's places that `top_mean` is the mean of


@exact_float32()
def smooth_along(maps: Tensor, axis: int, sigma: float) -> Tensor:
    """A Gaussian filter along an axis, as one matrix product."""
    matrix = ndimage.gaussian_filter1d(np.eye(maps.shape[axis]), sigma, axis=0, mode="nearest")
    return torch.tensordot(torch.from_numpy(matrix).to(maps), maps, dims=([1], [axis])).movedim(0, axis)


def top_mean(maps: Tensor, share: float = TOP_SHARE) -> float:
    """Mean of the highest `share` of a volume's places, at least one place. As a sample score it loses against
    `paper.top_score`, which is why it is in comparisons only."""
    count = max(1, round(share * maps.numel()))
    return float(maps.flatten().topk(count).values.double().mean())
