"""From likelihoods and restorations to anomaly scores.

As published (Marimont & Tarroni, 2020, section 2), but for `top_score`, which is an option beside the published sum.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F


def sample_score(nll: Tensor, threshold: float) -> Tensor:
    """Sum of the NLL of the unlikely codes: those above `threshold` (lambda_s), the others count 0.

    nll: (B, h, w), nats. Returns (B,), at least 0.
    """
    return torch.where(nll > threshold, nll, 0).flatten(1).sum(1)


def top_score(nll: Tensor, share: float = 0.01, in_plane: float = 0.1, along: float = 0.04) -> float:
    """Mean of a volume's highest `share` of NLL after Gaussian smoothing in 3D: the strongest coherent cluster counts.

    Not in the paper, whose sum over a whole volume drowns an anomaly in what differs between healthy people.
    nll: (N, h, w) of one volume's slices in order, nats. in_plane, along: standard deviations of the smoothing, as
    fractions of the code grid's side and of the number of slices. Returns nats, at least 0.
    """
    sigmas = (along * len(nll), in_plane * nll.shape[1], in_plane * nll.shape[2])
    smoothed = ndimage.gaussian_filter(nll.float().cpu().numpy(), sigmas).ravel()
    count = max(1, round(share * smoothed.size))
    return float(np.partition(smoothed, -count)[-count:].mean(dtype=np.float64))


def restoration_weights(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """Weights of a slice's restorations, (B, S), each row summing to 1: softmax(temperature / mean |slice - restoration|).

    slices: (B, H, W); restorations: (B, S, H, W), in the same intensities. Restorations near the slice weigh more. The
    published temperature is 3.
    """
    distance = (slices[:, None] - restorations).abs().mean((2, 3))
    tiny = torch.finfo(distance.dtype).tiny
    return torch.softmax(
        temperature / distance.clamp_min(tiny**0.5), dim=1
    )  # a perfect restoration: large, finite


def pixel_score(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """|slice - restoration| averaged over the restorations with `restoration_weights`, (B, H, W), at least 0."""
    weights = restoration_weights(slices, restorations, temperature)
    return torch.einsum("bs,bshw->bhw", weights, (slices[:, None] - restorations).abs())


def smooth(volume: Tensor) -> Tensor:
    """Least value of 3 x 3 x 3 neighbours, then mean of 3 x 7 x 7: specks go, blobs stay. (D, H, W) -> (D, H, W).

    Places outside the volume are left out of the minimum and count as zeros in the mean.
    """
    least = -F.max_pool3d(-volume[None], 3, stride=1, padding=1)
    padded = F.pad(
        least, (3, 3, 3, 3, 1, 1)
    )  # avg_pool3d's own padding is not for volumes smaller than its kernel
    return F.avg_pool3d(padded, (3, 7, 7), stride=1)[0]
