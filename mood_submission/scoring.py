"""From likelihoods and restorations to anomaly scores, as published (Marimont & Tarroni, 2020, section 2)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_score(nll: Tensor, threshold: float) -> Tensor:
    """Sum of the NLL of the unlikely codes: those above `threshold` (lambda_s), the others count 0.

    nll: (B, h, w), nats. Returns (B,), at least 0.
    """
    return torch.where(nll > threshold, nll, 0).flatten(1).sum(1)


def restoration_weights(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """Weights of a slice's restorations, (B, S), each row summing to 1: softmax(temperature / mean |slice - restoration|).

    slices: (B, H, W); restorations: (B, S, H, W), in the same intensities. Restorations near the slice weigh more. The
    published temperature is 3.
    """
    distance = (slices[:, None] - restorations).abs().mean((2, 3))
    tiny = torch.finfo(distance.dtype).tiny
    return torch.softmax(temperature / distance.clamp_min(tiny ** 0.5), dim=1)  # a perfect restoration: large, finite


def pixel_score(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """|slice - restoration| averaged over the restorations with `restoration_weights`, (B, H, W), at least 0."""
    weights = restoration_weights(slices, restorations, temperature)
    return torch.einsum("bs,bshw->bhw", weights, (slices[:, None] - restorations).abs())


def smooth(volume: Tensor) -> Tensor:
    """Least value of 3 x 3 x 3 neighbours, then mean of 3 x 7 x 7: specks go, blobs stay. (D, H, W) -> (D, H, W).

    Places outside the volume are left out of the minimum and count as zeros in the mean.
    """
    least = -F.max_pool3d(-volume[None], 3, stride=1, padding=1)
    padded = F.pad(least, (3, 3, 3, 3, 1, 1))  # avg_pool3d's own padding is not for volumes smaller than its kernel
    return F.avg_pool3d(padded, (3, 7, 7), stride=1)[0]
