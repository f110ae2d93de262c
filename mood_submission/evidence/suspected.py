"""Restoration where something is suspected, and nowhere else: which codes are drawn anew.

Not in the paper, which draws every unlikely code anew. In a healthy place that changes what is rare but healthy, and costs the
same everywhere.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..networks.layers import at_size

# Codes within so many places of a suspected one are drawn anew as well: they show its border.
AROUND = 1
# Codes within so many places beyond these are drawn anew where they are unlikely.
NEAR = 1
# What is suspected reaches this far up from the volume's median score to the peak of each object.
SUSPECTED = 0.5


def suspected_places(scores: Tensor, threshold: float) -> Tensor:
    """Where objects stand out in a volume's scores, (N, H, H) bool on the CPU: each down to half its own height.

    scores: (N, H, H), of a volume's slices in order. threshold: what an object's voxels reach.
    """
    values = scores.float().cpu().numpy()
    objects, count = ndimage.label(values >= threshold, np.ones((3, 3, 3)))
    if not count:
        return torch.zeros(scores.shape, dtype=torch.bool)
    peaks = ndimage.maximum(values, objects, np.arange(1, count + 1))
    median = float(np.median(values))
    least = np.concatenate([[np.inf], median + SUSPECTED * (peaks - median)])
    return torch.from_numpy(values >= least[objects])


def suspected_codes(suspected: Tensor, grid: tuple[int, int]) -> Tensor:
    """The codes that show what is suspected, and those round them, (N, h, w) bool.

    suspected: (N, H, H) bool, of a volume's slices. grid: height and width of a slice's codes.
    """
    return _grown(F.adaptive_max_pool2d(suspected.float()[:, None], grid), AROUND)[:, 0] > 0


def thresholds_at(codes: Tensor, threshold: float) -> Tensor:
    """Thresholds for `restoration.restore`, (N, h, w) float32: below 0 at the codes to draw anew, infinity far from them.

    codes: (N, h, w) bool. threshold: lambda_p in nats, for what lies near these codes.
    """
    near = _grown(codes.float()[:, None], NEAR)[:, 0] > 0
    return torch.where(codes, -1.0, torch.where(near, threshold, math.inf))


def blended(restored: Tensor, reconstruction: Tensor, codes: Tensor) -> Tensor:
    """What was restored at these codes, and the reconstruction elsewhere, with soft borders: (N, S', S').

    restored, reconstruction: (N, S', S'). codes: (N, h, w) bool.
    """
    weight = at_size(codes.to(restored), restored.shape[-2:])
    return torch.lerp(reconstruction, restored, weight)


def _grown(codes: Tensor, by: int) -> Tensor:
    """Marked codes (N, 1, h, w) with all that lie within `by` places along the rows and columns."""
    return F.max_pool2d(codes, 2 * by + 1, stride=1, padding=by)
