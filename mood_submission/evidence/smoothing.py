"""Smooths a volume's maps in 3D with Gaussians, and takes the mean of their highest values."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..networks.detector import DetectorSettings
from ..runtime.precision import exact_float32

# The share of a volume's places that `top_mean` averages.
TOP_SHARE = 5e-4
# Standard deviations that evidence is smoothed with: along z as a share of the number of slices, in the plane by kind as a
# share of the slices' side.
ALONG = 0.04
IN_PLANE = {"restoration": 0.03, "reconstruction": 0.03, "likelihood": 0.05}


@exact_float32()
def smooth_along(maps: Tensor, axis: int, sigma: float) -> Tensor:
    """A Gaussian filter along one axis, as one matrix product. The border's values continue beyond it.

    maps: any shape, floating point.
    axis: which axis of `maps`.
    sigma: standard deviation in places, above 0.
    Returns a tensor of the same shape.
    """
    matrix = ndimage.gaussian_filter1d(np.eye(maps.shape[axis]), sigma, axis=0, mode="nearest")
    smoothed: Tensor = torch.tensordot(torch.from_numpy(matrix).to(maps), maps, dims=([1], [axis]))
    return smoothed.movedim(0, axis)


def smooth_evidence(kind: str, maps: Tensor, size: int) -> Tensor:
    """Evidence resized and smoothed in 3D.

    kind: one of `rareness.EVIDENCE`. It decides the width of the smoothing.
    maps: (N, H, H), a volume's slices in order. Larger maps are averaged, with H a multiple of size. Smaller ones are
        interpolated.
    size: side of the result.
    Returns (N, size, size).
    """
    if maps.shape[-1] > size:
        maps = F.avg_pool2d(maps[:, None], maps.shape[-1] // size)[:, 0]
    elif maps.shape[-1] < size:
        maps = F.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    for axis, sigma in ((0, ALONG * len(maps)), (1, IN_PLANE[kind] * size), (2, IN_PLANE[kind] * size)):
        maps = smooth_along(maps, axis, sigma)
    return maps


def smooth_logits(logits: Tensor, settings: DetectorSettings) -> Tensor:
    """A detector's logits, smoothed in 3D. High logits in single pixels or slices vanish.

    logits: (N, H, W), a volume's slices in order.
    settings: the detector's, with the widths of the smoothing.
    Returns (N, H, W).
    """
    for axis, share in enumerate((settings.along, settings.in_plane, settings.in_plane)):
        if share > 0:
            logits = smooth_along(logits, axis, share * logits.shape[axis])
    return logits


def top_mean(maps: Tensor, share: float = TOP_SHARE) -> float:
    """The mean of a volume's highest values.

    maps: any shape.
    share: of the values that are averaged. At least one value is.
    """
    count = max(1, round(share * maps.numel()))
    return float(maps.flatten().topk(count).values.double().mean())
